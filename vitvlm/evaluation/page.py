"""One page of an evaluation of images against texts: confusions, the worst classes, and a search both ways."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vitvlm.core import pages
from vitvlm.evaluation import base, confusions, nearest

PAGE = "page.html"
NEIGHBOURS = 10
THUMBNAIL = 96  # pixels of the longer side
MAP_CLASSES = 100  # a larger confusion table cannot be read
WORST, EXAMPLES, PAIRS = 9, 5, 20

Picture = Callable[[int], UInt8[np.ndarray, "H W C"]]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is on the page.

    Attributes:
      title: its heading.
      pairs: embeddings of all images and texts.
      ranks: [m], how many images come before the first right one of each text.
      strings: texts at these places, as the model reads them.
      index: [n], each image's position in its source.
      order: texts in the order in which the search takes them in.
      label, prediction: [n], where the images were classified; `names` are then the classes'.
    """

    title: str
    pairs: nearest.Pairs
    ranks: Int[np.ndarray, " m"]
    strings: Callable[[Sequence[int]], Sequence[str]]
    index: Int[np.ndarray, " n"]
    order: Sequence[int]
    label: Int[np.ndarray, " n"] | None = None
    prediction: Int[np.ndarray, " n"] | None = None
    names: tuple[str, ...] = ()


def write(
    folder: pathlib.Path,
    shown: Shown,
    result: base.Result,
    images: int,
    picture: Picture,
    example_id: Callable[[int], str] = str,
) -> None:
    """Writes page.html into the folder, with at most `images` pictures; the first process alone does."""
    if jax.process_index():
        return
    worst, values = [], {"names": (), "map": None, "confused": [], "worst": []}
    if shown.label is not None:
        worst = confusions.worst(shown.label, shown.prediction, WORST, EXAMPLES)
        values = _classes(shown, worst)
    found = nearest.search(
        shown.pairs, shown.order, images, NEIGHBOURS, first=[place for row in worst for place in row.wrong]
    )
    data = nearest.page_data(shown.pairs, found, shown.ranks)
    for place, image in data["images"].items():
        index = int(shown.index[place])
        image |= {"uri": pages.thumbnail(picture(index), THUMBNAIL), "id": example_id(index)}
    for place, text in zip(found.strings, shown.strings(found.strings)):
        data["texts"][place]["text"] = text
    data["total"] = len(shown.pairs.image)
    path = pathlib.Path(folder) / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    page = pages.render(
        "vitvlm.evaluation",
        "page.html",
        data,
        title=shown.title,
        facts=pages.metric_facts(result.metrics),
        protocol=result.protocol,
        statement=statement(shown, found, images),
        images=data["images"],
        percent=pages.percent,
        neighbours=NEIGHBOURS,
        thumbnail=THUMBNAIL,
        **values,
    )
    path.write_text(page, encoding="utf-8")


def statement(shown: Shown, found: nearest.Search, images: int) -> str:
    """What of the set is on the page, in a sentence."""
    n, m = len(shown.pairs.image), len(shown.pairs.text)
    if len(found.images) == n and len(found.texts) == m:
        return f"All {n:,} images and {m:,} texts of the evaluated set are on this page."
    return (
        f"The evaluated set has {n:,} images and {m:,} texts. On this page are {len(found.images):,} of the images "
        f"(at most {images:,}, so that the file stays small) and {len(found.texts):,} of the texts, whose nearest "
        "images are all among them. Ranks and neighbours are over the whole set."
    )


def _classes(shown: Shown, worst: Sequence[confusions.Worst]) -> Mapping[str, Any]:
    """What the page says of the classes."""
    classes = len(shown.names)
    table = confusions.counts(shown.label, shown.prediction, classes) if classes <= MAP_CLASSES else None
    return {
        "names": shown.names,
        "map": None if table is None else confusion_map(table, shown.names),
        "confused": confusions.pairs(shown.label, shown.prediction, PAIRS),
        "worst": [(row, [(place, int(shown.prediction[place])) for place in row.wrong]) for row in worst],
    }


def confusion_map(table: Int[np.ndarray, "S S"], names: Sequence[str]) -> dict[str, Any]:
    """Where the cells of the heat-map are, in pixels: as large as the number of classes leaves room for."""
    classes = len(table)
    side = int(np.clip(900 / classes, 10, 46))
    labels = [name if len(name) <= 26 else name[:25] + "…" for name in names]
    margin = 30 + int(0.57 * min(side + 1, 12) * max(map(len, labels)))
    total = table.sum(axis=1)
    cells = [
        {"row": int(a), "column": int(b), "count": int(table[a, b]), "share": float(table[a, b] / total[a])}
        for a, b in np.argwhere(table)
    ]
    return {
        "side": side,
        "margin": margin,
        "size": margin + classes * side + 4,
        "font": min(side + 1, 12),
        "labels": labels,
        "cells": cells,
        "numbers": side >= 22,
    }
