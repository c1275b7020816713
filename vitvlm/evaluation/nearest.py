"""Nearest neighbours between the images and the texts of a whole set, and the few of them that a page can show."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

BLOCK = 2048  # queries, and candidates, of one product: 32 MB of float64
TIE = 1e-7  # similarities that differ by less, in float32's last digit, are equal
TEXTS_PER_IMAGE = 10  # a page has at most so many texts to search for each image that it may show
_CHUNK = 64  # texts whose neighbours are found at once while there is room on the page


def similarities(
    queries: Float[np.ndarray, "q *M E"], candidates: Float[np.ndarray, "c *M E"]
) -> Float[np.ndarray, "q c"]:
    """Products of embeddings, one of a query with one of a candidate; of a side that has M each, the largest.

    Several are those of a Q-Former's queries, of which the best counts (Li et al. 2023).
    """
    several = [side[:, None] if side.ndim == 2 else side for side in (queries, candidates)]
    rows, columns = (side.reshape(-1, side.shape[-1]) for side in several)
    (q, m, _), (c, n, _) = (side.shape for side in several)
    return (rows @ columns.T).reshape(q, m, c, n).max(axis=(1, 3))


def own_similarities(images: Float[np.ndarray, "n *M E"], texts: Float[np.ndarray, "n E"]) -> Float[np.ndarray, " n"]:
    """Similarities of image i and text i alone."""
    several = images.reshape(len(images), -1, images.shape[-1])
    return np.einsum("nme,ne->nm", several, texts).max(axis=1)


def top(
    queries: Float[np.ndarray, "q *M E"], candidates: Float[np.ndarray, "c *M E"], k: int, block: int = BLOCK
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """Finds (places, similarities) of each query's k most similar candidates, best first; all, if there are fewer.

    Of candidates that are as similar (to 1e-7) the earlier comes first. Block by block: memory does not grow with c.
    """
    k = min(k, len(candidates))
    places, scores = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k))
    for i in range(0, len(queries), block):
        some = queries[i : i + block].astype(np.float64)
        place, score = np.zeros((len(some), 0), np.int64), np.zeros((len(some), 0))
        for j in range(0, len(candidates), block):
            new = similarities(some, candidates[j : j + block].astype(np.float64))
            score = np.concatenate([score, new], axis=1)
            place = np.concatenate([place, np.broadcast_to(np.arange(j, j + new.shape[1]), new.shape)], axis=1)
            best = np.argsort(-np.round(score / TIE), axis=1, kind="stable")[:, :k]
            place, score = np.take_along_axis(place, best, axis=1), np.take_along_axis(score, best, axis=1)
        places[i : i + block], scores[i : i + block] = place, score
    return places, scores


def before(similarity: np.ndarray, right: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Marks the candidates that rank before the right one: the more similar, and among equal ones the `earlier`."""
    return (similarity > right + TIE) | ((similarity > right - TIE) & earlier)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A set of images and texts whose embeddings are unit vectors; a text is right for the images of its group.

    Attributes:
      image, text: [n, E], or [n, M, E] of an image that has several, and [m, E].
      image_group, text_group: [n] and [m]: the image itself (captions), or its class (class names).
    """

    image: Float[np.ndarray, "n *M E"]
    text: Float[np.ndarray, "m E"]
    image_group: Int[np.ndarray, " n"]
    text_group: Int[np.ndarray, " m"]

    @functools.cached_property
    def first(self) -> dict[int, int]:
        """The first image of each group."""
        return {int(group): place for place, group in reversed(list(enumerate(self.image_group)))}


@dataclasses.dataclass(frozen=True)
class Search:
    """Neighbours that a page can search and show: each list holds (place in the set, similarity), the nearest first.

    Attributes:
      texts: the images nearest to each text that can be searched.
      images: the texts nearest to each image that is shown.
      own: the right texts of the images that are shown.
    """

    texts: dict[int, list[tuple[int, float]]]
    images: dict[int, list[tuple[int, float]]]
    own: tuple[int, ...]

    @property
    def strings(self) -> list[int]:
        """Places of the texts that are named anywhere, in order."""
        return sorted({*self.texts, *self.own, *(text for near in self.images.values() for text, _ in near)})


def search(pairs: Pairs, order: Iterable[int], shown: int, k: int, first: Iterable[int] = ()) -> Search:
    """Neighbours over the WHOLE set for as many texts as need no more than `shown` images.

    Args:
      order: texts in the order in which they are wanted.
      shown: how many images may be shown.
      k: neighbours each.
      first: images that are shown in any case, up to `shown`.

    A text needs its k nearest images and the first right one. Room that texts leave is filled with other images. Where
    the whole set is no larger than `shown`, all is there.
    """
    n = len(pairs.image)
    images = dict.fromkeys(range(n)) if n <= shown else dict.fromkeys(list(first)[:shown])
    order = list(order)[: TEXTS_PER_IMAGE * shown]
    texts: dict[int, list[tuple[int, float]]] = {}
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        found = _lists(*top(pairs.text[chunk], pairs.image, k))
        for text, near in zip(chunk, found):
            own = pairs.first.get(int(pairs.text_group[text]))
            needed = dict.fromkeys([place for place, _ in near] + ([] if own is None else [own]))
            if len(images | needed) > shown:
                break
            images |= needed
            texts[int(text)] = near
        if len(texts) < start + len(chunk):
            break
    others = (place for place in np.random.default_rng(0).permutation(n).tolist() if place not in images)
    kept = sorted([*images, *itertools.islice(others, shown - len(images))])
    near_texts = _lists(*top(pairs.image[kept], pairs.text, k))
    own = np.flatnonzero(np.isin(pairs.text_group, pairs.image_group[kept]))
    return Search(dict(sorted(texts.items())), dict(zip(kept, near_texts)), tuple(own.tolist()))


def page_data(
    pairs: Pairs, found: Search, text_ranks: Int[np.ndarray, " m"], image_ranks: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    """Places only, as JSON: images and texts by their place in the set, to which the page adds pictures and strings.

    Args:
      text_ranks: of each text, how many images come before its first right one.
      image_ranks: of each image, how many texts come before its first right one; m if none is right.
    """
    rounded = lambda near: [[place, round(score, 4)] for place, score in near]  # noqa: E731
    return {
        "images": {
            place: {
                "group": int(pairs.image_group[place]),
                "near": rounded(near),
                "rank": int(image_ranks[place]) + 1 if image_ranks[place] < len(pairs.text) else None,
            }
            for place, near in found.images.items()
        },
        "texts": {
            place: {"group": int(pairs.text_group[place])}
            | (
                {
                    "near": rounded(found.texts[place]),
                    "rank": int(text_ranks[place]) + 1,
                    "right": pairs.first.get(int(pairs.text_group[place])),
                }
                if place in found.texts
                else {}
            )
            for place in found.strings
        },
    }


def _lists(places: np.ndarray, scores: np.ndarray) -> list[list[tuple[int, float]]]:
    return [list(zip(row.tolist(), values.tolist())) for row, values in zip(places, scores)]
