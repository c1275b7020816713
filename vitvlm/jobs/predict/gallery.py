"""One page of predictions: a gallery sorted by confidence, to be filtered by class, name and confidence."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitvlm.core import pages
from vitvlm.data.sources.given import Unlabelled
from vitvlm.pretrained.predicting import Prediction
from vitvlm.pretrained.predictions import thumbnail

SIDE = 192  # pixels of the longer side of a thumbnail
MOST = 1000  # pictures
BARS = 10  # of the histogram of confidences


def write(
    path: Path,
    predictions: Sequence[Prediction],
    source: Unlabelled,
    title: str,
    protocol: str,
    most: int = MOST,
    classified: bool = True,
) -> None:
    """Writes the page, a single file, with at most `most` pictures: evenly spaced by confidence, of all there are.

    Args:
      source: where the pictures are read from, by id.
      classified: whether the model has classes; otherwise the images stand in their order.
    """
    places = {name: place for place, name in enumerate(source.ids)}
    read = [one for one in predictions if not one.error and one.image in places]
    ordered = sorted(read, key=lambda one: -one.classes[0][1]) if classified else read
    shown = [
        ordered[i] for i in np.unique(np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int))
    ]
    images = []
    for one in shown:
        picture = thumbnail(source, places[one.image], SIDE)
        classes = [{"name": name, "share": share} for name, share in one.classes]
        images.append({"id": one.image, "picture": picture, "classes": classes})
    broken = [{"id": one.image, "why": one.error} for one in predictions if one.error]
    data = {"images": images, "classified": classified}
    html = pages.render(
        "vitvlm.jobs.predict",
        "predictions.html",
        data,
        title=title,
        protocol=protocol,
        facts=_facts(predictions, read, classified),
        classes=_classes(read) if classified else [],
        bars=_bars(read) if classified else [],
        broken=broken[:MOST],
        broken_count=len(broken),
        statement=_statement(len(read), len(shown)),
        percent=pages.percent,
        classified=classified,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def _facts(predictions: Sequence[Prediction], read: Sequence[Prediction], classified: bool) -> list[tuple[str, str]]:
    found = [("images", f"{len(predictions):,}"), ("could not be read", f"{len(predictions) - len(read):,}")]
    if classified and read:
        confidence = [one.classes[0][1] for one in read]
        found.append(("median confidence", pages.percent(float(np.median(confidence)))))
    return found


def _classes(read: Sequence[Prediction]) -> list[tuple[str, int]]:
    """Lists (class, number of its images), the largest first."""
    return collections.Counter(one.classes[0][0] for one in read).most_common()


def _bars(read: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The histogram of confidences: bars of equal width, heights as shares of the highest."""
    counts, _ = np.histogram([one.classes[0][1] for one in read], bins=BARS, range=(0, 1))
    highest = max(counts.max(), 1)
    return [
        {"low": i / BARS, "high": (i + 1) / BARS, "count": int(count), "height": float(count / highest)}
        for i, count in enumerate(counts)
    ]


def _statement(count: int, shown: int) -> str:
    if shown == count:
        return ""
    return (
        f"On this page are {shown:,} of the {count:,} images, evenly spaced by confidence, so that the file stays "
        "small; the numbers above are of all."
    )
