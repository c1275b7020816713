"""Patch size of a small ViT on Fashion-MNIST: tokens, compute and accuracy under one budget of examples.

    python scripts/ablate.py --config=configs/ablations/patch_size.py --workdir=workdirs/patch_size

`:fine` adds patches of 2 pixels, whose 196 tokens take longer than all others together; `:debug` is the same sweep at
toy size. `--config.budget.train="10 epochs"` sets another budget for all.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, fine=False, debug=False)
    config = ConfigDict()
    config.title = "Patch size of a small ViT on Fashion-MNIST"
    config.question = (
        "Smaller patches give more tokens and cost more compute: twice the tokens, four times the score and value "
        "products of attention. Does the accuracy pay for it? (On ImageNet: B/32 80.7, B/16 84.5, B/8 85.8.)"
    )
    config.axis = "patch size (pixels)"
    config.budget = dict(train="4 steps" if args.debug else "2 epochs")
    config.stages = (
        dict(
            name="train",
            base="configs/vit_fashion.py" + ":debug" * args.debug,
            overrides=dict(evals=dict(test=dict(every=None))),
        ),
    )
    config.variants = tuple(
        dict(name=f"patch_{size}", value=size, overrides=dict(train=dict(model=dict(patch_size=size))))
        for size in ((7, 14) if args.debug else (2,) * args.fine + (4, 7, 14))
    )
    config.scores = (dict(label="top-1 accuracy", metric="train.test/top1"),)
    return config
