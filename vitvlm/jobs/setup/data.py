"""Data of a job from its config: the splits, the opened source of the training, and batches of both."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vitvlm.core import config as config_lib
from vitvlm.data import operations, sources
from vitvlm.data.batches import EvalBatches, TrainBatches, eval_batches, train_batches, zero_batch
from vitvlm.data.packing import packed
from vitvlm.data.shapes import OpenShapeError, batch_shapes
from vitvlm.data.texts import check_texts
from vitvlm.jobs import fields
from vitvlm.jobs.setup.classes import Head
from vitvlm.training import sharding


@dataclasses.dataclass(frozen=True)
class DataSetup:
    """Splits of a job's data, and how batches of them are made.

    Attributes:
      section: the config's `data`.
      train, eval: the training's and the evaluations' examples and operations.
      batch_size: examples per step, over all devices.
      seed: of the order and of every random operation.
      source: the training examples; None until they are opened (`open`), which only a training needs.
    """

    section: fields.Data
    train: fields.Split
    eval: fields.Split
    batch_size: int
    seed: int
    source: sources.Source | None = None

    @classmethod
    def of(cls, config: ConfigDict | Mapping[str, Any]) -> "DataSetup":
        """Checks the fields of `fields.Inputs`; opens nothing. Raises ConfigError that names the field."""
        own = fields.read(fields.Inputs, config_lib.plain(config))
        section = config_lib.call(fields.Data, own.data, "config.data")
        train = section.split(section.train, "config.data.train")
        operations.parse(train.ops)
        return cls(section, train, section.split(section.eval, "config.data.eval"), own.batch_size, own.seed)

    def open(self) -> "DataSetup":
        """The same with the training examples.

        Raises DataError if they are not there, and ConfigError for operations or names of classes that do not fit them.
        """
        source = self._opened()
        pipeline = operations.parse(self.train.ops)
        check_texts(source, pipeline, "config.data.train")
        source = packed(source, pipeline, "config.data.train")
        opened = dataclasses.replace(self, source=source)
        opened.check_class_names()
        return opened

    def check_class_names(self) -> None:
        """Raises ConfigError if `data.class_names` names a class that neither of the two splits has.

        The training examples are opened only if the others have not all of them.
        """
        evaluated = open_split(self.eval) if self.section.class_names else None
        if evaluated is not None and not set(self.train.class_names) <= _classes_of(evaluated):
            check_renames(self.train, self._opened(), evaluated)

    def under(self, head: Head | None) -> "DataSetup":
        """The same data, the labels of the opened source places in a head's logits; without a head, as they are.

        Raises DataError that lists the classes which the head does not have.
        """
        if head is None or self.source is None:
            return self
        return dataclasses.replace(self, source=head.score(self.source).source)

    def example_batch(self, num_classes: int | None = None) -> dict[str, np.ndarray]:
        """A batch of one row of zeros, of the shapes that devices see in training: what models are initialised with.

        The shapes follow from the operations. Where these leave one open, the first readable example has it.

        Args:
          num_classes: S of the labels, where the source has not been opened; None for none.
        """
        known: dict[str, Any] = {"num_classes": num_classes}
        if self.source is not None:
            known = {
                "fields": self.source.fields,
                "num_classes": self.source.num_classes if self.source.labelled else None,
                "multi_label": self.source.multi_label,
            }
        try:
            return batch_shapes(self.train.ops, 1, **known)
        except OpenShapeError:
            return sharding.numbers(zero_batch(self._opened(), self.train.ops, 1))

    def _opened(self) -> sources.Source:
        return open_split(self.train) if self.source is None else self.source

    def batches(self, source: sources.Source | None = None, ops: str | None = None, **known: Any) -> TrainBatches:
        """Starts this process's training batches.

        Args:
          source, ops: in place of its own, of the same rows (`data.blanks`).
          known: those arguments of `train_batches` by which changed data are found.
        """
        return train_batches(
            self.source if source is None else source,
            self.train.ops if ops is None else ops,
            self.batch_size,
            self.seed,
            workers=self.section.workers,
            max_unreadable_fraction=self.section.max_unreadable_fraction,
            shuffle_buffer=self.section.shuffle_buffer,
            balance=self.section.balance,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **known,
        )

    def evaluation_pass(
        self,
        split: fields.Split,
        opened: sources.Source | Callable[[], sources.Source],
        batch_size: int | None = None,
    ) -> Callable[[], EvalBatches]:
        """Returns a function that starts one exact pass over a split; its source may be opened only when needed."""
        return lambda: eval_batches(
            opened() if callable(opened) else opened,
            split.ops,
            batch_size or self.batch_size,
            workers=self.section.workers,
            max_unreadable_fraction=self.section.max_unreadable_fraction,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def open_split(split: fields.Split) -> sources.Source:
    """The source of a split, its classes called as the split's `class_names` say."""
    source = sources.open(split.source, split.split, labels_fraction=split.labels_fraction, labelling=split.labelling)
    return sources.renamed(sources.scored(source, split.scoring), split.class_names)


def check_renames(split: fields.Split, *opened: sources.Source) -> None:
    """Raises ConfigError for a class of `class_names` that none of the sources has."""
    own = set().union(*map(_classes_of, opened))
    if unknown := [name for name in split.class_names if name not in own]:
        looked = " nor ".join(source.name for source in opened)
        raise config_lib.ConfigError(
            f"config.data.class_names: no class {unknown[0]!r} in {looked}; {config_lib.suggest(unknown[0], own)} "
            "(classes of an evaluator's own data go into that data section)"
        )


def _classes_of(source: sources.Source) -> set[str]:
    """Names of its classes, its own and those that `class_names` gives them."""
    return {*source.renames, *source.label_names}
