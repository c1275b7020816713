"""A data set of arrays as evaluators see it, and prediction functions that need no model."""

import numpy as np

NAMES = tuple("abcdefghi")  # of as many classes as there are at most


def passes(images, labels=None, batch_size=7, index=None, padding=3):
    """An exact pass in batches, the last one padded; `padding` more rows than needed are filled with rubbish."""
    images = np.asarray(images, np.float32)
    index = np.arange(len(images)) if index is None else np.asarray(index)

    def batches():
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            real = len(images[rows])
            size = batch_size + (padding if real < batch_size else 0)
            batch = {
                "image": np.full((size, *images.shape[1:]), 77, np.float32),
                "index": np.zeros(size, np.int64),
                "example_mask": np.zeros(size, np.float32),
            }
            batch["image"][:real], batch["index"][:real], batch["example_mask"][:real] = images[rows], index[rows], 1
            if labels is not None:
                batch["label"] = np.zeros(size, np.int32)
                batch["label"][:real] = labels[rows]
            yield batch

    return batches


def predict(name, variables, batch):
    """logits and features: the image times a matrix, example by example so that the batch size cannot matter."""
    flat = batch["image"].reshape(len(batch["image"]), -1)
    values = np.stack([row @ variables[name] for row in flat])
    return {name: values}


def blobs(n, classes=4, width=6, spread=0.3, seed=0):
    """Gaussian classes as images [n, 1, width, 1]: separable for a small spread. Returns images and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1234).normal(size=(classes, width))
    labels = rng.integers(classes, size=n)
    images = centres[labels] + spread * rng.normal(size=(n, width))
    return images.reshape(n, 1, width, 1).astype(np.float32), labels
