"""A ViT on your own images: one directory per class, nothing to prepare.

    python scripts/train.py --config=configs/vit_folder.py:PATH --workdir=workdirs/mine
    python scripts/train.py --config=configs/vit_folder.py:PATH,image_size=128,variant=Ti/16 --workdir=workdirs/mine

PATH holds one directory per class, or train/ and test/ (or val/) with one directory per class each; without these, a
fifth of each class is held out for the test. On a few hundred images from scratch expect little: start from your own
MAE pre-training (configs/mae_folder.py on the same images) with `init=WORKDIR`.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, path="", variant="Ti/16", image_size=96, epochs=30, init="", debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 64
    config.image_size = 32 if args.debug else args.image_size
    size = config.get_ref("image_size")

    config.task = dict(name="classify", label_smoothing=0.1)
    config.model = dict(
        name="vit",
        variant=args.variant,
        image_size=size,
        num_classes="data",
        positions="sincos",
        pool="gap",
        cls_token=True,
        drop_path=0.1,
        scan=False,
    )
    if args.debug:
        config.model.update(width=24, depth=2, heads=3, mlp_width=48)
    if args.init:
        config.init_from = dict(path=args.init, rules=(("head/.*", None), ("(.*)", r"vit/\1")), ignore=("decoder/.*",))

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.3, 1.0))|flip|normalize('half')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('half')"
    config.data = dict(
        source=f"folder:{args.path}" if args.path else "emoji",
        train=dict(split="train", ops=crop),
        eval=dict(split="test", ops=whole),
        workers=0,
    )

    config.optimizer = dict(name="adamw", weight_decay=0.05, clip_norm=1.0, layer_decay=0.75 if args.init else None)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="5%")
    config.evals = dict(test=dict(type="classification", every="20%"))
    config.checkpoint = dict(every="10%", keep_last=1, best="test/top1")
    config.log = dict(every=1 if args.debug else 20)
    return config
