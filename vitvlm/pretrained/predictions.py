"""Predictions of some images together: what `vitvlm.load(path).predict(images)` returns."""

import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from vitvlm.core import pages
from vitvlm.data import operations
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.sources.given import Unlabelled, given
from vitvlm.pretrained import predicting, scoring
from vitvlm.pretrained.predicting import Prediction, Request

_SHOWN = 20  # rows of the text and of the table in a notebook
_SIDE = 64  # pixels of its thumbnails


@dataclasses.dataclass(frozen=True, repr=False)
class Predictions(Sequence[Prediction]):
    """A sequence of one `Prediction` for each image, in the images' order.

    In a notebook it shows the images with their classes.

    Attributes:
      each: the predictions.
      source: where the images came from.
    """

    each: tuple[Prediction, ...]
    source: Unlabelled

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...

    def __getitem__(self, index: Any) -> Any:
        return self.each[index]

    def __len__(self) -> int:
        return len(self.each)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.each)

    @property
    def names(self) -> list[str | None]:
        """The likeliest class of each image; None of one that cannot be read, or without classes."""
        return [one.classes[0][0] if one.classes else None for one in self.each]

    @property
    def features(self) -> Float[np.ndarray, "n E"]:
        """The embeddings, NaN of images that cannot be read. Raises ValueError where none were asked for."""
        width = next((len(one.features) for one in self.each if one.features is not None), None)
        if width is None:
            raise ValueError("no features: ask for them by predict(images, features=True)")
        rows = [np.full(width, np.nan, np.float32) if one.features is None else one.features for one in self.each]
        return np.stack(rows)

    @property
    def errors(self) -> dict[str, str]:
        """The reasons why images cannot be read, by id."""
        return {one.image: one.error for one in self.each if one.error}

    def __repr__(self) -> str:
        rows = [f"{one.image}: {said(one)}" for one in self.each[:_SHOWN]]
        if len(self) > _SHOWN:
            rows.append(f"… and {len(self) - _SHOWN:,} more")
        return "\n".join([f"{len(self):,} images, {len(self.errors):,} of them cannot be read", *rows])

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        rows = [
            f"<tr><td>{self._thumbnail(i)}</td><td>{html.escape(one.image)}</td><td>{_cells(one)}</td></tr>"
            for i, one in enumerate(self.each[:_SHOWN])
        ]
        more = f"<p>… and {len(self) - _SHOWN:,} more</p>" if len(self) > _SHOWN else ""
        head = "<tr><th></th><th>image</th><th>class</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>{more}"

    def _thumbnail(self, index: int) -> str:
        picture = thumbnail(self.source, index, _SIDE)
        return "" if picture is None else f'<img src="{picture}" alt="">'


def predict(loaded: scoring.Loaded, images: Any, request: Request) -> Predictions:
    """The predictions for paths or pictures, see `sources.given.given`."""
    source = images if isinstance(images, Unlabelled) else given(images)
    each = tuple(one for batch in predicting.stream(loaded, source, request) for one in batch)
    return Predictions(each, source)


def said(one: Prediction) -> str:
    """One line of a prediction: "cat 97.1 %, dog 2.0 %"."""
    if one.error:
        return f"cannot be read: {one.error}"
    if not one.classes:
        return "features" if one.features is not None else "nothing"
    return ", ".join(f"{name} {pages.percent(share)}" for name, share in one.classes)


def thumbnail(source: Unlabelled, index: int, side: int) -> str | None:
    """A picture of a source as the address of a thumbnail; None if it cannot be read."""
    try:
        example = operations.parse("decode(4)")(source[index], np.random.default_rng(0))
    except UnreadableImage:
        return None
    return pages.thumbnail(example["image"], side)


def _cells(one: Prediction) -> str:
    if not one.classes:
        return html.escape(said(one))
    return "<br>".join(f"{html.escape(name)} {pages.percent(share)}" for name, share in one.classes)
