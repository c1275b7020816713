"""Image folders in which each class has a colour of its own, so that a test knows what a perfect model says."""

from PIL import Image

COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cow": (30, 30, 200), "dog": (200, 200, 30)}
OPS = "decode(3)|resize(8)|normalize('unit')"


def picture(folder, name, colour):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), COLOURS[colour]).save(path)
    return name


def a_folder(root, per_class=4, **classes):
    """PATH/SPLIT/CLASS/N.png, each in the colour of its class; `classes` are names, or {name: colour}, by split."""
    for split, names in classes.items():
        for name in names:
            for number in range(per_class):
                picture(root / split / name, f"{number}.png", names[name] if isinstance(names, dict) else name)
    return f"folder:{root}"


def a_config(source, model, evals=None, **data):
    """One step of a classifier on the source's train, evaluated on its test."""
    split = dict(ops=OPS)
    return {
        "task": {"name": "classify"},
        "model": model,
        "data": {"source": source, "train": {"split": "train", **split}, "eval": {"split": "test", **split}, **data},
        "total": "1 steps",
        "batch_size": 4,
        "optimizer": {"name": "sgd"},
        "schedule": {"name": "constant", "peak": 1.0},
        "evals": {"test": {"type": "classification"}} if evals is None else evals,
    }
