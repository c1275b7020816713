"""Result of loading weights of any format, and where their variables go."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Sharding

from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.core.placing import Lazy, Stored, place_tree
from vitvlm.data import chat, chat_files, operations, supervision, tokenizers
from vitvlm.generation.loaded import Messages, Picture, Shown
from vitvlm.pretrained import asking, shown
from vitvlm.pretrained.entries import WeightsError, blamed
from vitvlm.pretrained.predicting import Request
from vitvlm.pretrained.predictions import Predictions, predict
from vitvlm.training.records import CheckpointError, DamagedError

Tree = Any
Place = Sharding | Callable[[Tree], Tree] | None
"""Where variables go: one sharding for all of them; a function from their shapes, {"params": …} of
`jax.ShapeDtypeStruct`s, to a tree of shardings, such as `training.sharding.variables_by(rules, mesh)`; or None,
the default device."""


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """A model with its weights and how its inputs are made: `loaded.model.apply(loaded.variables, images)`.

    Fields:
      model: a Flax module; layers in a loop (`scan=False`) unless asked otherwise.
      variables: {"params": …} and, with batch norm, {"batch_stats": …}, in the dtypes of the source; on devices, or as
        `open` leaves them, lazy.
      preprocessing: an operation string, for `data.operations.parse`; None if the source does not say.
      texts: the arguments of `tokenizers.open`, "tokenizer" (its spec), "length" and rules; None for image models, and
        where the source does not say.
      class_names: what the logits stand for, in their order; None without a head, and where the source does not say.
      source: where it came from: "path", "format", "model" (its name and fields, as a config's), and the source's own
        configs.
      adapters: low-rank adapters by the path of their matrix, see `nn.lora`: a, b, scale and perhaps magnitude; None
        for a model without. The variables have them already, by default merged.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    preprocessing: str | None
    texts: Mapping[str, Any] | None
    source: Mapping[str, Any]
    class_names: tuple[str, ...] | None = None
    adapters: Mapping[str, Mapping[str, Any]] | None = None

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer | None:
        """Texts to what the text tower reads: `loaded.tokenizer.encode(["a cat"])`; None without any.

        Without `texts`, it is that of the `supervise` in the preprocessing of a training of ours.

        Raises ConfigError or DataError if its files cannot be used.
        """
        if self.texts is None:
            return (
                None if self.preprocessing is None else supervision.tokenizer_of(operations.parse(self.preprocessing))
            )
        rules = dict(self.texts)
        return tokenizers.open(rules.pop("tokenizer"), **rules)

    @functools.cached_property
    def chat_template(self) -> chat.ChatTemplate:
        """The chat template that came with the tokenizer: `loaded.chat_template.render(messages)`.

        Raises ConfigError if there is none, DataError if its files cannot be used.
        """
        rules = self.texts
        if rules is None and self.preprocessing is not None:
            rules = supervision.rules_of(operations.parse(self.preprocessing))
        if rules is None:
            raise ConfigError(f"{self.source.get('path')}: has no tokenizer, and so no chat template")
        return chat_files.read(rules["tokenizer"])

    def with_images(
        self,
        prompts: Sequence[str | Messages],
        images: Sequence[Sequence[Picture]],
        names: Sequence[str] | None = None,
    ) -> Shown:
        """Makes ids of prompts with images, and what else the model reads with them, for `generation.Writer`.

        The images go through `preprocessing`, and take the places in the text that a training of the model gives them:
        where their markers stand, "<image>", or before a text without any.

        Args:
          prompts: texts, or chats, of which each message has "role" and "content".
          images: those of each prompt, paths, PIL images or pixels uint8 [H, W, C]; none for a text alone.
          names: what errors call the prompts.

        Raises ConfigError for a model that sees no images, does not say how they are prepared or how its prompts are
        written, for a file that cannot be read, and for more or fewer markers than images.
        """
        return asking.with_images(self, prompts, images, names)

    @property
    def shapes(self) -> Tree:
        """The variables as `jax.ShapeDtypeStruct`s."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(self.variables))

    def predict(self, images: Any, **request: Any) -> Predictions:
        """Classes, probabilities and embeddings of images: `loaded.predict(["a.jpg", "folder"], top=3)`.

        Args:
          images: a path, a folder, a pattern, a list or a tar, or several of them, see `sources.given.Pictures`; a
            Pillow image or an array of uint8 [H, W, C], or several of them.
          request: fields of `predicting.Request`, such as top, features and temperature.

        An image that cannot be read has the reason as its `error`. Raises ConfigError for a model that cannot give what
        is asked for, and for images that are not there.
        """
        return predict(self, images, config_lib.call(Request, request, "predict"))

    def __repr__(self) -> str:
        return shown.text(self)

    def _repr_html_(self) -> str:
        """The tables that a notebook shows."""
        return shown.as_html(self)

    def placed(self, place: Place = None) -> "Pretrained":
        """The same with its variables on devices: each device is given its own part, straight from the file.

        Raises WeightsError for a file that is damaged.
        """
        shardings = place(self.shapes) if callable(place) else place
        return dataclasses.replace(self, variables=place_tree(dict(self.variables), shardings))


def blame_lazily(opened: Pretrained, path: Path) -> Pretrained:
    """The same, whose lazy variables raise WeightsError that names the file when they are read in vain."""

    def wrap(leaf: Lazy) -> Lazy:
        if not isinstance(leaf, Stored):
            return dataclasses.replace(leaf, layers=tuple(map(wrap, leaf.layers)))

        def read() -> np.ndarray:
            with blamed(path):
                try:
                    return leaf.read()
                except OSError as error:
                    raise WeightsError(f"{path}: cannot be read any more: {error}") from None
                except CheckpointError as error:
                    raise WeightsError(str(error)) from None
                except DamagedError as error:
                    raise WeightsError(f"{path}: its checkpoint is damaged: {error}; step= gives another") from None

        return dataclasses.replace(leaf, read=read)

    return dataclasses.replace(opened, variables=jax.tree.map(wrap, dict(opened.variables)))
