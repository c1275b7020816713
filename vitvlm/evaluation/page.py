"""One page of an evaluation: confusions, the worst classes, and a search between images and texts both ways."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vitvlm.core import pages
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, confusions, nearest

PAGE = "page.html"
NEIGHBOURS = 10
THUMBNAIL = 96  # pixels of the longer side
MAP_CLASSES = 100  # a larger confusion table cannot be read
WORST, PAIRS, EXAMPLES = 9, 20, 5

Picture = Callable[[int], UInt8[np.ndarray, "H W C"]]


@dataclasses.dataclass(frozen=True)
class Searchable:
    """Images and texts that can be searched.

    Attributes:
      pairs: embeddings of all of them.
      text_ranks: [m], how many images come before the first right one of each text; n if there is none.
      image_ranks: [n], how many texts come before the first right one of each image; m if there is none.
      strings: texts at these places, as the model reads them.
      order: texts in the order in which the search takes them in.
    """

    pairs: nearest.Pairs
    text_ranks: Int[np.ndarray, " m"]
    image_ranks: Int[np.ndarray, " n"]
    strings: Callable[[Sequence[int]], Sequence[str]]
    order: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Classified:
    """Images that were classified: label and prediction [n], and a name for each class."""

    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Page:
    """Content of an evaluator's page.

    Attributes:
      title: its heading.
      index: [n], each image's position in its source.
      searchable, classified: what there is to show of the images.
    """

    title: str
    index: Int[np.ndarray, " n"]
    searchable: Searchable | None = None
    classified: Classified | None = None


def check_room(shown: int) -> None:
    """Raises ConfigError for a number of images that no search fits into."""
    if shown < 0 or 0 < shown <= NEIGHBOURS:
        raise ConfigError(
            f"max_images: {shown} images; one text alone needs {NEIGHBOURS + 1}: give at least as many, or 0 for no "
            "page"
        )


def write(
    folder: pathlib.Path,
    page: Page,
    result: base.Result,
    shown: int,
    picture: Picture | None,
    example_id: Callable[[int], str] = str,
) -> base.Result:
    """Writes page.html into the folder, with at most `max_images` pictures, and gives the result with its path.

    Only the first process writes; nothing is written if `max_images` is 0 or there are no pictures.
    """
    if not shown or picture is None or jax.process_index():
        return result
    classes = _classes(page.classified) if page.classified else {}
    first = dict.fromkeys(
        place for row in (*classes.get("worst", ()), *classes.get("confused", ())) for place in row.wrong
    )
    data, statement = _search(page.searchable, shown, first) if page.searchable else _pictures(first, shown)
    for place, image in data["images"].items():
        index = int(page.index[place])
        image |= {"uri": pages.thumbnail(picture(index), THUMBNAIL), "id": example_id(index)}
    html = pages.render(
        "vitvlm.evaluation",
        "page.html",
        data,
        title=page.title,
        facts=facts(result.metrics),
        protocol=result.protocol,
        statement=statement,
        searchable=page.searchable is not None,
        images=data["images"],
        percent=pages.percent,
        **{"names": (), "prediction": (), "map": None, "confused": (), "worst": (), **classes},
    )
    path = pathlib.Path(folder) / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return dataclasses.replace(result, page=path)


def facts(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Lists (name, value, interval) of each metric, for the head of the page."""
    return [
        (
            name,
            f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}",
            f"{bounds[0]:.3g} to {bounds[1]:.3g}" if bounds else "",
        )
        for name, value, bounds in base.with_intervals(metrics)
    ]


def _search(searchable: Searchable, shown: int, first: Iterable[int]) -> tuple[dict[str, Any], str]:
    """Returns the search's data without pictures, and a sentence that says which part of the set it holds."""
    pairs = searchable.pairs
    found = nearest.search(pairs, searchable.order, shown, NEIGHBOURS, first)
    data = nearest.page_data(pairs, found, searchable.text_ranks, searchable.image_ranks)
    for place, text in zip(found.strings, searchable.strings(found.strings)):
        data["texts"][place]["text"] = text
    n, m = len(pairs.image), len(pairs.text)
    data |= {"total": {"images": n, "texts": m}, "captions": len(np.unique(pairs.image_group)) == n}
    if len(found.images) == n and len(found.texts) == m:
        return data, f"All {n:,} images and {m:,} texts of the evaluated set are on this page."
    return data, (
        f"The evaluated set has {n:,} images and {m:,} texts. On this page are {len(found.images):,} of the images "
        f"(at most {shown:,}, so that the file stays small) and {len(found.texts):,} of the texts, whose nearest "
        "images are all among them. Ranks and neighbours are over the whole set."
    )


def _pictures(places: Iterable[int], shown: int) -> tuple[dict[str, Any], str]:
    """The data of a page without a search."""
    wanted = list(places)
    cut = f"At most {shown:,} pictures are on this page: {len(wanted) - shown:,} that belong here were left out."
    return {"images": {place: {} for place in wanted[:shown]}, "texts": {}}, cut if len(wanted) > shown else ""


def _classes(classified: Classified) -> dict[str, Any]:
    """Returns the page's data about classes: confusion map, pairs confused most often, and the worst classes."""
    label, prediction, classes = classified.label, classified.prediction, len(classified.names)
    table = confusions.counts(label, prediction, classes) if classes <= MAP_CLASSES else None
    return {
        "names": classified.names,
        "prediction": prediction,
        "map": None if table is None else confusion_map(table, classified.names),
        "confused": confusions.pairs(label, prediction, PAIRS, EXAMPLES),
        "worst": confusions.worst(label, prediction, WORST, EXAMPLES),
    }


def confusion_map(table: Int[np.ndarray, "S S"], names: Sequence[str]) -> dict[str, Any]:
    """Lays out the heat-map of a confusion table, in pixels; the more classes, the smaller its cells."""
    classes = len(table)
    side = int(np.clip(900 / classes, 9, 46))
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
