"""A small ViT on Fashion-MNIST from scratch.

    python scripts/train.py --config=configs/vit_fashion.py --workdir=workdirs/vit_fashion

`:debug` is the same job at toy size.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    debug = arg == "debug"
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if debug else "20 epochs"
    config.batch_size = 8 if debug else 128
    config.image_size = 28
    size = config.get_ref("image_size")

    config.task = dict(name="classify", label_smoothing=0.1)
    config.model = dict(
        name="vit",
        width=16 if debug else 96,
        depth=2 if debug else 6,
        heads=2 if debug else 3,
        mlp_width=32 if debug else 384,
        patch_size=4,
        image_size=size,
        num_classes=10,
        pool="gap",
        drop_path=0.0,
        scan=True,
    )

    evaluate = "decode(1)|resize(" + size.to_str() + ")|normalize('fashion_mnist')"
    config.data = dict(
        source="tfds:fashion_mnist",
        train=dict(
            split="train[:1%]" if debug else "train",
            ops="decode(1)|random_crop(" + size.to_str() + ", padding=2)|flip|normalize('fashion_mnist')",
        ),
        eval=dict(split="test[:1%]" if debug else "test", ops=evaluate),
        workers=0,
    )

    config.optimizer = dict(name="adamw", b2=0.99, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=2e-3, warmup="10%")
    config.evals = dict(test=dict(type="classification", every="5 epochs"))
    config.log = dict(every=1 if debug else 50)
    return config
