"""A small ViT on Fashion-MNIST from scratch.

    python scripts/train.py --config=configs/vit_fashion.py --workdir=workdirs/vit_fashion
    python scripts/train.py --config=configs/vit_fashion.py:flexible --workdir=workdirs/flexivit_fashion

`:flexible` is one ViT for every patch size (Beyer et al. 2023, FlexiViT): each step draws one of four. The kernel of
the patch embedding that is stored is that of the largest patch, the table of positions has 7x7 places; both are
resampled for the patch size of the step. `configs/ablations/patch_size.py` trains one ViT for each size.

`:debug` is the same job at toy size.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

PATCH_SIZES = (2, 4, 7, 14)


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, flexible=False, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else "14 epochs"
    config.batch_size = 8 if args.debug else 128
    config.image_size = 28
    size = config.get_ref("image_size")

    config.task = dict(name="classify", label_smoothing=0.1)
    config.model = dict(
        name="vit",
        width=16 if args.debug else 64,
        depth=2 if args.debug else 5,
        heads=2,
        mlp_width=32 if args.debug else 256,
        patch_size=4,
        image_size=size,
        num_classes="data",
        pool="gap",
        scan=False,
    )

    evaluate = "decode(1)|resize(" + size.to_str() + ")|normalize('fashion_mnist')"
    train = "decode(1)|resize(" + size.to_str() + ")|flip|normalize('fashion_mnist')"  # shifts cost accuracy this early
    config.data = dict(
        source="tfds:fashion_mnist",
        train=dict(split="train[:1%]" if args.debug else "train", ops=train),
        eval=dict(split="test[:1%]" if args.debug else "test", ops=evaluate),
    )

    config.optimizer = dict(name="adamw", b2=0.99, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=2e-3, warmup="10%")
    config.evals = dict(test=dict(type="classification", every="25%"))
    if args.flexible:
        config.task.patch_sizes = PATCH_SIZES
        config.model.update(patch_size=max(PATCH_SIZES), position_grid=(7, 7))
        config.evals = {f"patch_{p}": dict(type="classification", output=f"logits_{p}") for p in PATCH_SIZES}
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 50)
    return arguments.apply(args, config)
