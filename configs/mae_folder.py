"""MAE pre-training on your own images, no labels needed beyond the folders; by default on the embedded emoji set.

python scripts/train.py --config=configs/mae_folder.py:PATH --workdir=workdirs/mae_mine
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, path="", variant="Ti/16", image_size=96, epochs=100, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 64
    config.image_size = 32 if args.debug else args.image_size
    size = config.get_ref("image_size")

    config.task = dict(name="reconstruct")
    config.model = dict(
        name="mae",
        variant=args.variant,
        image_size=size,
        mask_ratio=0.75,
        decoder_width=128,
        decoder_depth=2,
        decoder_heads=4,
        scan=False,
    )
    if args.debug:
        sizes = dict(width=24, depth=2, heads=3, mlp_width=48, decoder_width=16, decoder_depth=1, decoder_heads=2)
        config.model.update(sizes)

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.3, 1.0))|flip|normalize('half')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('half')"
    config.data = dict(
        source=f"folder:{args.path}" if args.path else "emoji",
        train=dict(split="train", ops=crop),
        eval=dict(split="test", ops=whole),
        workers=0,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.schedule = dict(name="cosine", peak=1e-3, base_batch=256, warmup="5%")
    config.evals = dict(
        reconstruction=dict(type="reconstruction", every="20%"), knn=dict(type="knn", features="token_mean")
    )
    config.log = dict(every=1 if args.debug else 20)
    return config
