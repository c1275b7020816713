"""A ViT on any labelled images, small enough for a laptop: your own folders, or the embedded emoji set.

    python scripts/train.py --config=configs/vit.py:folder:PATH --workdir=workdirs/mine
    python scripts/train.py --config=configs/vit.py:folder:PATH,variant=S/16,image_size=224 --workdir=workdirs/mine_s16
    python scripts/train.py --config=configs/vit.py:init=workdirs/mae --workdir=workdirs/finetuned

PATH holds one directory per class, of which a fifth is held out for the test; or train/ and test/ with one directory
per class each (`test=val` where it is called val/). With `init=WORKDIR` it starts from the encoder of a training of
`configs/mae.py`, on the same images or on more without labels.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(
        arg, source="emoji", init="", test="test", variant="", image_size=64, epochs=16, debug=False
    )
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 64
    config.image_size = 32 if args.debug else args.image_size
    size = config.get_ref("image_size")

    config.task = dict(name="classify", label_smoothing=0.1)
    config.model = dict(
        name="vit",
        image_size=size,
        num_classes="data",
        positions="sincos",
        pool="gap",
        cls_token=True,
        drop_path=0.1,
        scan=False,
    )
    if args.debug:
        config.model.update(width=24, depth=2, heads=3, mlp_width=48, patch_size=8)
    elif args.variant:
        config.model.update(variant=args.variant)
    else:
        config.model.update(width=128, depth=4, heads=4, mlp_width=512, patch_size=8)
    if args.init:
        config.init_from = dict(path=args.init, rules=(("head/.*", None), ("(.*)", r"vit/\1")), ignore=("decoder/.*",))

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|flip|normalize('half')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('half')"
    config.data = dict(
        source=args.source,
        train=dict(split="train[:64]" if args.debug else "train", ops=crop),
        eval=dict(split=args.test + "[:16]" * args.debug, ops=whole),
        workers=0,
    )

    config.optimizer = dict(name="adamw", weight_decay=0.05, clip_norm=1.0, layer_decay=0.75 if args.init else None)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="10%")
    config.evals = dict(test=dict(type="classification", every="25%"))
    config.checkpoint = dict(every="10%", keep_last=1, best="test/top1")
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)
