"""Batches whose images are others than their texts': another example's, none, the mean one, or noise."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vitvlm.evaluation import base

SWAPPED, BLIND, MEAN, NOISE = CONDITIONS = ("swapped", "blind", "mean", "noise")
SAID = {
    SWAPPED: "the images of another example of the same type of question",
    BLIND: "no image: nothing looks at the image tokens",
    MEAN: "the mean image of the evaluated examples",
    NOISE: "noise with the mean and deviation of their pixels",
}
PIXELS = ("image", "images")
BESIDE = ("patch_mask", "patch_grid", "images_patch_mask", "images_patch_grid", "image_times")

Images = Callable[[int], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Known:
    """Facts about the images of all evaluated examples.

    Attributes:
      partner: the example whose images each one is given, by index; those without a partner are missing.
      mean: the mean image [H, W, C]; spread: the standard deviation of all pixels, by channel [C].
    """

    partner: Mapping[int, int]
    mean: np.ndarray
    spread: np.ndarray


def survey(batches: base.Batches, types: Callable[[int], str], seed: int = 0) -> Known:
    """Looks at all images once.

    Args:
      types: the type of an example's question: images are swapped within a type.

    Raises ValueError for batches without images of one shape.
    """
    sums: dict[str, np.ndarray | float] = {"count": 0.0}

    def look(batch: base.Batch) -> base.Arrays:
        name = pixels_of(batch)
        images = np.asarray(batch[name], np.float64)
        images = images[:, None] if name == "image" else images
        there = _there(batch, images.shape[:2]) & (np.asarray(batch["example_mask"]) > 0)[:, None]
        sums["count"] += float(there.sum())
        for key, value in (("sum", images), ("squares", images**2)):
            sums[key] = sums.get(key, 0.0) + np.einsum("bi,bihwc->hwc", there, value)
        digests = [hash_of(image, own) for image, own in zip(np.asarray(batch[name]), there)]
        return {"digest": np.array(digests, np.int64), "layout": layouts(batch, there)}

    whole = base.collect(batches, look)
    sums = base.summed(sums)
    index, kinds = whole["index"], [types(int(i)) for i in whole["index"]]
    groups: dict[tuple[str, int], list[int]] = {}
    for row, (kind, layout) in enumerate(zip(kinds, whole["layout"].tolist())):
        groups.setdefault((kind, layout), []).append(row)
    partner: dict[int, int] = {}
    rng = np.random.default_rng(seed)
    for rows in groups.values():
        own = np.array(rows)
        others = deranged(whole["digest"][own], rng)
        partner |= {int(index[a]): int(index[own[b]]) for a, b in zip(own, others) if b >= 0}
    mean = sums["sum"] / max(sums["count"], 1)
    variance = (sums["squares"] / max(sums["count"], 1)).mean(axis=(0, 1)) - mean.mean(axis=(0, 1)) ** 2
    return Known(partner, mean, np.sqrt(np.maximum(variance, 0)))


def deranged(digests: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A permutation in which nobody gets an image like their own; -1 for those who cannot be given another.

    Where more than half have the same image, not all can: as many as possible are.
    """
    n = len(digests)
    if n < 2:
        return np.full(n, -1)
    order = rng.permutation(n)
    order = order[np.argsort(digests[order], kind="stable")]  # like images stand together, otherwise by chance
    _, sizes = np.unique(digests, return_counts=True)
    given = np.roll(order, -int(sizes.max()))  # further than any stretch of like images reaches
    partner = np.full(n, -1)
    partner[order] = np.where(digests[order] == digests[given], -1, given)
    return partner


def changed(batches: base.Batches, condition: str | None, known: Known, images: Images, seed: int = 0) -> base.Batches:
    """The same pass with other images under a condition; None: with their own. All have an image_mask then.

    Examples that no other image could be found for are left out of "swapped" (their example_mask is 0).
    """

    def start() -> Iterator[base.Batch]:
        for batch in batches():
            yield _changed(dict(batch), condition, known, images, seed)

    return start


def _changed(
    batch: dict[str, np.ndarray], condition: str | None, known: Known, images: Images, seed: int
) -> base.Batch:
    name = pixels_of(batch)
    pixels, batch = np.asarray(batch[name]), with_mask(batch)
    real = np.asarray(batch["example_mask"]) > 0
    if condition == BLIND:
        return blind(batch)
    elif condition == MEAN:
        batch[name] = np.broadcast_to(known.mean, pixels.shape).astype(pixels.dtype)
    elif condition == NOISE:
        drawn = [np.random.default_rng([seed, max(int(i), 0)]).normal(size=pixels.shape[1:]) for i in batch["index"]]
        batch[name] = (known.mean.mean(axis=(0, 1)) + np.array(drawn) * known.spread).astype(pixels.dtype)
    elif condition == SWAPPED:
        batch[name], mask = pixels.copy(), np.array(batch["example_mask"])
        batch["image_mask"] = batch["image_mask"].copy()
        for row, index in enumerate(batch["index"]):
            if not real[row]:
                continue
            other = known.partner.get(int(index))
            if other is None:
                mask[row] = 0
                continue
            found = images(other)
            batch[name][row] = found[name]
            if "image_mask" in found:
                batch["image_mask"][row] = found["image_mask"]
        batch["example_mask"] = mask
    return batch


def with_mask(batch: base.Batch) -> dict[str, np.ndarray]:
    """Returns the batch with an image_mask, of ones if it has none."""
    name = pixels_of(batch)
    shape = np.shape(batch[name])
    mask = np.ones((shape[0], 1 if name == "image" else shape[1]), np.int32)
    return {**batch, "image_mask": np.asarray(batch.get("image_mask", mask))}


def blind(batch: base.Batch) -> dict[str, np.ndarray]:
    """Returns the batch without any image: nothing looks at the tokens of one."""
    masked = with_mask(batch)
    return {**masked, "image_mask": np.zeros_like(masked["image_mask"])}


def pixels_of(batch: base.Batch) -> str:
    """The name of a batch's images. Raises ValueError if it has none, or none of one shape."""
    for name in PIXELS:
        if name in batch and np.asarray(batch[name]).ndim == (5 if name == "images" else 4):
            return name
    raise ValueError(
        "grounding needs images of one shape, [B, H, W, C] or [B, I, H, W, C]: resize them, or grounding=()"
    )


def hash_of(image: np.ndarray, there: Sequence[bool] | np.ndarray) -> int:
    """A number that like images share: of the pixels of those that are there."""
    pixels = image if image.ndim == 3 else image[np.asarray(there, bool)]
    return int.from_bytes(_digest(pixels), "little")


def layouts(batch: base.Batch, there: np.ndarray) -> Int[np.ndarray, " B"]:
    """A number of each example that those share whose images can be exchanged.

    They have as many images, the same order of image tokens, and patches in the same places, if there are any.
    """
    rows = []
    for row, own in enumerate(there):
        parts = [np.asarray(own, bool)]
        if "image_index" in batch:
            index = np.asarray(batch["image_index"])[row].astype(np.int64).ravel()
            parts.append(index[index >= 0])
        parts += [np.asarray(batch[name])[row] for name in BESIDE if name in batch]
        rows.append(int.from_bytes(_digest(*parts), "little"))
    return np.array(rows, np.int64)


def _digest(*arrays: np.ndarray) -> bytes:
    made = hashlib.blake2b(digest_size=7)
    for array in arrays:
        made.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return made.digest()


def _there(batch: base.Batch, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(batch["image_mask"]) > 0 if "image_mask" in batch else np.ones(shape, bool)
