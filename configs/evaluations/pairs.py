"""Two towers judged on images and their texts: retrieval both ways, and zero-shot by the names of the classes.

    python scripts/evaluate.py --weights=PATH --config=configs/evaluations/pairs.py --workdir=workdirs/pairs
    python scripts/evaluate.py --weights=PATH --config=configs/evaluations/pairs.py:source=folder:IMAGES \\
        --evals=zero_shot --workdir=workdirs/pairs

Images and texts are prepared as the weights say. `text` is the field of the data that holds the texts, `max_texts` how
many it holds of an image at the most; of more, `surplus=first` takes the first ones.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, source="emoji", split="test", text="name", max_texts=1, surplus="error")
    config = ConfigDict()
    config.batch_size = 32
    split = dict(split=args.split)
    texts = dict(field=args.text, max_texts=args.max_texts, surplus=args.surplus)
    config.data = dict(source=args.source, train=dict(split), eval=dict(split), texts=texts)
    config.evals = dict(
        retrieval=dict(type="retrieval"), zero_shot=dict(type="zero_shot"), knn=dict(type="knn", leave_one_out=True)
    )
    return config
