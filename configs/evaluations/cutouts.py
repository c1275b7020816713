"""Nearest neighbours among captioned photo cut-outs: what a frozen encoder knows of things that it was not trained on.

    python scripts/evaluate.py --weights=PATH --config=configs/evaluations/cutouts.py --workdir=workdirs/cutouts

The photographs among Tux Paint's stamps (Debian's tuxpaint-stamps-default), their category to be guessed from the five
nearest of all others; the same on raw pixels beside it. `:FEATURES`, such as `:block_10_cls`, takes what that
prediction gives instead of the pooled output.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

SIZE = 224


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, features="features")
    config = ConfigDict()
    config.batch_size = 16
    split = dict(split="all", ops=f"decode|resize_pad({SIZE})|normalize('imagenet')")
    config.data = dict(source="stamps:photos", train=dict(split), eval=dict(split))
    neighbours = dict(type="knn", leave_one_out=True, ks=(5,))
    config.evals = dict(
        knn=dict(neighbours, features=args.features),
        knn_pixels=dict(neighbours, features="pixels"),
    )
    return config
