"""Mask ratio of an MAE on Fashion-MNIST: pre-training, then a linear probe, then fine-tuning with 1 % of the labels.

    python scripts/ablate.py --config=configs/ablations/mask_ratio.py --workdir=workdirs/mask_ratio

`:debug` is the same sweep at toy size. `--config.budget.pretrain="10 epochs"` sets another budget for all.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, debug=False)
    config = ConfigDict()
    config.title = "Mask ratio of an MAE on Fashion-MNIST"
    config.question = (
        "How much of an image should be hidden? In the paper (figure 5, ImageNet) the linear probe rises up to 75 % "
        "and falls at 90 %, while fine-tuning is flat between 40 and 80 %. A higher ratio is also cheaper: the "
        "encoder sees fewer tokens."
    )
    config.axis = "mask ratio (%)"
    config.budget = dict(
        pretrain="4 steps" if args.debug else "3 epochs", finetune="4 steps" if args.debug else "50 epochs"
    )
    unused = dict(probe_random=None, probe_pixels=None, knn=None)  # the same for every variant, or not compared
    config.stages = (
        dict(
            name="pretrain",
            base="configs/mae_fashion.py" + ":debug" * args.debug,
            overrides=dict(evals=dict(reconstruction=dict(every=None), **unused)),
        ),
        dict(
            name="finetune",
            base="configs/finetune_fashion.py:path={pretrain}" + ",debug" * args.debug,
            label="fine-tuning with 1 % of the labels",
        ),
    )
    config.variants = tuple(
        dict(
            name=f"mask_{ratio}", value=float(ratio), overrides=dict(pretrain=dict(model=dict(mask_ratio=ratio / 100)))
        )
        for ratio in ((50, 75) if args.debug else (25, 50, 75, 90))
    )
    config.scores = (
        dict(label="linear probe", metric="pretrain.probe/top1"),
        dict(label="fine-tuned, 1 % of labels", metric="finetune.test/top1"),
    )
    return config
