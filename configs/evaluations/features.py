"""Features of every image, as an array file with ids.

    python scripts/evaluate.py --weights=PATH --config=configs/evaluations/features.py:folder:IMAGES --workdir=WORKDIR

The argument is any data source; one with commas in it goes into `--config.data.source`. Images are prepared as the
weights say; where they do not say, override `--config.data.eval.ops` and `--config.data.train.ops`.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, source="emoji")
    config = ConfigDict()
    config.batch_size = 32
    config.data = dict(source=args.source, train=dict(split="train"), eval=dict(split="test"))
    config.evals = dict(features=dict(type="features"), features_train=dict(type="features", data=dict(split="train")))
    return config
