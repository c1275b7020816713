"""Features of every image, as an array file with ids.

    python scripts/evaluate.py --weights=PATH --config=configs/evaluations/features.py:folder:IMAGES --workdir=WORKDIR

The argument is any data source. Images are prepared as the weights say; where they do not say, override
`--config.data.eval.ops` and `--config.data.train.ops`.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.batch_size = 32
    config.data = dict(source=arg or "emoji", train=dict(split="train"), eval=dict(split="test"))
    config.evals = dict(features=dict(type="features"), features_train=dict(type="features", data=dict(split="train")))
    return config
