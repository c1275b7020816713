"""Fine-tunes the encoder of `mae_fashion.py` on a share of Fashion-MNIST's labels, 1 % by default.

    python scripts/train.py --config=configs/finetune_fashion.py:workdirs/mae_fashion --workdir=workdirs/finetuned
    python scripts/train.py --config=configs/finetune_fashion.py --workdir=workdirs/from_scratch

Without a path the same network trains on the same labels from random weights.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, path="", labels=0.01, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else "100 epochs"
    config.batch_size = 8 if args.debug else 64
    config.image_size = 28
    size = config.get_ref("image_size")

    config.task = dict(name="classify", label_smoothing=0.1)
    config.model = dict(
        name="vit",
        width=16 if args.debug else 128,
        depth=2 if args.debug else 4,
        heads=2 if args.debug else 4,
        mlp_width=32 if args.debug else 512,
        patch_size=4,
        image_size=size,
        num_classes="data",
        positions="sincos",
        pool="gap",
        cls_token=True,
        drop_path=0.1,
        scan=False,
    )
    if args.path:
        config.init_from = dict(
            path=args.path,
            rules=(("head/.*", None), ("(.*)", r"vit/\1")),
            ignore=("decoder/.*",),
        )

    config.data = dict(
        source="tfds:fashion_mnist",
        train=dict(
            split="train",
            labels_fraction=args.labels,
            ops="decode(1)|random_crop(" + size.to_str() + ", padding=2)|flip|normalize('fashion_mnist')",
        ),
        eval=dict(
            split="test[:1%]" if args.debug else "test",
            ops="decode(1)|resize(" + size.to_str() + ")|normalize('fashion_mnist')",
        ),
    )

    config.optimizer = dict(name="adamw", b2=0.999, weight_decay=0.05, layer_decay=0.75 if args.path else None)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="10%")
    config.evals = dict(test=dict(type="classification"))
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 50)
    return arguments.apply(args, config)
