"""Evaluations from a config. An evaluator turns predictions into metrics; with a name, data and a schedule it is one.

Each evaluator is given the data, the predictions and the facts of the job that it asks for.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import linen as nn

from vitvlm import evaluation
from vitvlm.core import config as config_lib
from vitvlm.core.limits import Count
from vitvlm.data import operations, sources, supervision
from vitvlm.data.batches import EvalBatches, left_out
from vitvlm.data.loader import Loader
from vitvlm.data.operations import colour, text
from vitvlm.data.texts import check_texts, texts_rule
from vitvlm.jobs import fields
from vitvlm.jobs.evaluation import grounding
from vitvlm.jobs.evaluation.prediction import Predictor, functions
from vitvlm.jobs.setup import classes, memory
from vitvlm.jobs.setup.classes import Head
from vitvlm.jobs.setup.data import DataSetup, check_renames, open_split
from vitvlm.jobs.setup.model import ModelSetup

LEARN = classes.REMEDY % "data that it learns from"


@dataclasses.dataclass(frozen=True)
class Section:
    """One evaluation's section of the config; the fields that are not here are the evaluator's own.

    Attributes:
      type: name of the evaluator.
      every: duration between evaluations while training; None for none in between.
      at_start: also before the first step.
      at_end: also after the last step.
      if_labelled: leave the evaluation out, with a line in the log, where its data have no classes.
      data: split, operations and source of what is evaluated; unset fields are those of config.data.eval.
      train_data: the same for the split that probes and neighbours learn from; by default the training split with
        the evaluation's operations.
      batch_size: by default the training's.
      grounding: other images that a model which sees images is judged with beside the right ones, of
        `other_images.CONDITIONS`; all by default, () for none.
      swap_within: the field of the records that holds the type of a question, within which images are swapped; by
        default the evaluator's own `types`, or "question_type" where the records have it.
    """

    type: str
    every: str | int | None = None
    at_start: bool = False
    at_end: bool = True
    if_labelled: bool = False
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train_data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: Count | None = None
    grounding: tuple[str, ...] | None = None
    swap_within: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluator with its name in the config, its schedule, its data, and the end of its protocol.

    Attributes:
      left_out: says what operations left out of the examples of the last pass; "" for nothing.
    """

    name: str
    when: Section
    evaluator: evaluation.Evaluator
    source: sources.Source
    note: str = ""
    left_out: Callable[[], str] = str

    def run(self, predict: Predictor, variables: Mapping[str, Any], folder: epath.Path) -> evaluation.Result:
        """Evaluates into `folder`, where the result is also written as result.json.

        Every process takes part, and the first one's files are kept: of several, each would write the same.
        """
        if jax.process_index():
            with tempfile.TemporaryDirectory() as elsewhere:
                return self.evaluator.run(predict, variables, epath.Path(elsewhere))
        folder.mkdir(parents=True, exist_ok=True)
        result = self.evaluator.run(predict, variables, folder)
        result = dataclasses.replace(result, protocol=result.protocol + evaluation.notes(self.note, self.left_out()))
        described = {"name": self.name, "protocol": result.protocol, "metrics": result.metrics}
        (folder / "result.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        return result


def build(
    model: ModelSetup, data: DataSetup, sections: Mapping[str, fields.Section], note: str = ""
) -> tuple[Evaluation, ...]:
    """Builds every evaluation of a config's `evals`, of a model on data of its own or on the job's.

    The note ends the protocols of those whose images `data.eval.ops` makes.
    Raises ConfigError that names the field.
    """
    built = (_build(model, data, name, section, note) for name, section in sections.items())
    return tuple(each for each in built if each is not None)


@dataclasses.dataclass
class _Pass:
    """Starts an exact pass over a split at each call, and knows what operations left out of the last one."""

    start: Callable[[], EvalBatches]
    last: EvalBatches | None = None

    def __call__(self) -> EvalBatches:
        self.last = self.start()
        return self.last

    def left_out(self) -> str:
        count = jax.process_count()
        told = left_out(self.last.dropped) if self.last is not None else ""
        return f"{told} (of the first of {count} processes' shares)" if told and count > 1 else told


def _build(model: ModelSetup, data: DataSetup, name: str, section: fields.Section, note: str) -> Evaluation | None:
    where = f"config.evals.{name}"
    if not isinstance(section, Mapping):
        raise config_lib.ConfigError(f"{where}: {section!r:.60} is no section; give at least its type, as type='knn'")
    ours = {field.name for field in dataclasses.fields(Section)}
    when = config_lib.call(Section, {key: value for key, value in section.items() if key in ours}, where)
    own = {key: value for key, value in section.items() if key not in ours}

    shared = data.section
    split = shared.split({**shared.eval, **when.data}, f"{where}.data")
    train_split = shared.split({**shared.train, "ops": split.ops, **when.train_data}, f"{where}.train_data")
    for each, given in ((split, when.data), (train_split, when.train_data)):
        if "class_names" in given:
            check_renames(each, open_split(each))
    if when.if_labelled and not open_split(split).labelled:
        logging.warning("%s: is left out: %s has no classes", where, split.source)
        return None
    pipeline = operations.parse(split.ops)
    labels = _labels(model.head, when.type, own, split, train_split, where)
    source = labels.source
    check_texts(source, pipeline, f"{where}.data")
    if when.batch_size is not None:
        memory.check_batch(model.example_batch, when.batch_size, f"{where}.batch_size")
    batches = _Pass(data.evaluation_pass(split, source, when.batch_size))
    given: dict[str, Any] = {
        "batches": batches,
        "train_batches": data.evaluation_pass(train_split, labels.train_source, when.batch_size),
        "random_variables": functools.partial(_random_variables, model),
        "example_id": source.ids.__getitem__,
        **labels.given,
        **_facts(model.task.model, pipeline),
        **_pictures(source, pipeline),
        "texts": source.text,
    }
    if "stop_ids" in evaluation.takes(when.type):
        given["stop_ids"] = supervision.stop_ids(source, pipeline)
    sees = grounding.sees_images(model, pipeline)
    if sees and "images" in evaluation.takes(when.type):
        given["images"] = grounding.images_of(source, pipeline)
        given["type_of"] = grounding.types_of(source, when.swap_within, "", where)
    evaluator = evaluation.build(when.type, {**labels.defaults, **own}, where, **given)
    facts = evaluation.Facts(
        name=source.name,
        train_name=f"{train_split.source} {train_split.split}",
        labels=lambda: _readable(source),
        train_labels=lambda: _readable(labels.train_source()),
        arrays=pipeline.arrays,
        predictions=tuple(functions(model.task)),
        text=functools.partial(source.text, 0),
    )
    evaluation.check(evaluator, facts, where)
    if sees and evaluator.compared is not None:
        evaluator = grounding.grounded(model, evaluator, when, source, pipeline, given.get("picture"), where)
    elif when.grounding:
        raise config_lib.ConfigError(
            f"{where}.grounding: {when.type} on this model and data compares no images: leave it out"
        )
    note = note if split.ops == shared.eval.get("ops") else ""
    return Evaluation(name, when, evaluator, source, note, batches.left_out)


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Data of an evaluator, its labels under the classes that it scores.

    Attributes:
      source: the evaluated split.
      train_source: opens the data that probes and neighbours learn from.
      given: the evaluator's arguments about classes.
      defaults: fields of its section that depend on the job.
    """

    source: sources.Source
    train_source: Callable[[], sources.Source]
    given: dict[str, Any]
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


def _labels(
    head: Head | None, kind: str, own: fields.Section, split: fields.Split, train_split: fields.Split, where: str
) -> _Labels:
    """Puts an evaluator's labels under the classes that it scores: those of the head, or of a probe's training data.

    Where nothing has learned classes, as in zero-shot classification, they are those of the evaluated data.

    Raises DataError for an unlabelled source and for classes that were not learned, ConfigError for a model without a
    head where one is scored.
    """
    source, train_source = open_split(split), functools.cache(lambda: open_split(train_split))
    takes = evaluation.takes(kind)
    if not evaluation.labelled(kind):  # at most, labels are written down
        return _Labels(source, train_source, {"label_names": source.label_names})
    user = f"{where} ({kind})"
    if not source.labelled:
        sources.check_classes(source, user)
    _check_kind_of_labels(kind, source, where)
    given: dict[str, Any] = {"matched": classes.by_hand(source.renames)}
    defaults: dict[str, Any] = {}
    if "data_classes" in takes:
        if head is None:
            raise config_lib.ConfigError(
                f"{where}: {kind} scores a head, and this model has none: take knn, linear_probe_logistic or another "
                "evaluator of features"
            )
        scored = head.score(source)
        source, given = scored.source, {"data_classes": scored.named, "matched": scored.note}
        defaults = {"within": "data"} if head.published and not source.multi_label else {}
    elif "train_batches" in takes and not own.get("leave_one_out"):
        train = train_source()
        sources.check_classes(train, user)
        source = sources.placed(source, train.label_names, f"the data that it learns from, {train.name}", LEARN)
        given = {"matched": classes.by_hand({**train.renames, **source.renames})}
    sources.check_classes(source, user)
    return _Labels(source, train_source, {"label_names": source.label_names, **given}, defaults)


def _readable(source: sources.Source) -> np.ndarray:
    """The labels of the examples that have one to be read; those of the others are -1."""
    return source.labels[source.labels >= 0]


def _check_kind_of_labels(kind: str, source: sources.Source, where: str) -> None:
    """Raises ConfigError if images have one label and the evaluator takes lists of them, or the other way round."""
    if source.multi_label and not evaluation.lists_of_labels(kind):
        raise config_lib.ConfigError(
            f"{where}: {kind} takes one label per image, and {source.name} has several: set its type to 'multi_label'"
        )
    if evaluation.lists_of_labels(kind) and not source.multi_label:
        raise config_lib.ConfigError(
            f"{where}: {kind} takes lists of labels, and {source.name} has one per image: set its type to "
            "'classification'"
        )


def _facts(model: nn.Module, pipeline: operations.Pipeline) -> dict[str, Any]:
    """Arguments of evaluators that the model and the operations give, such as patch size, mean and tokenizer."""
    facts: dict[str, Any] = {"texts_rule": texts_rule(pipeline)}
    if tokenizer := text.tokenizer_of(pipeline) or supervision.tokenizer_of(pipeline):
        facts["tokenize"], facts["detokenize"] = tokenizer.encode, tokenizer.decode
    if statistics := colour.normalization(pipeline):
        facts["mean"], facts["std"] = map(tuple, statistics)
    if (patch := model.image_encoder.patch) is not None:
        facts["patch_size"] = patch
    if model.normalizes_targets is not None:
        facts["norm_pix"] = model.normalizes_targets
    return facts


def _pictures(source: sources.Source, pipeline: operations.Pipeline) -> dict[str, Any]:
    """Argument `picture`: the model's input images with normalisation undone; empty if pixels are not normalised."""
    if (statistics := colour.normalization(pipeline)) is None:
        return {}
    loader, (mean, std) = Loader(source, pipeline, seed=0), statistics

    def picture(index: int) -> np.ndarray:
        example = loader.example(0, index)
        pixels = (example["image"] if "image" in example else example["images"][0]) * std + mean
        return np.clip(np.round(255 * pixels), 0, 255).astype(np.uint8)

    return {"picture": picture}


def _random_variables(model: ModelSetup, seed: int) -> dict[str, Any]:
    """Variables as they were before any training, for baselines."""
    return jax.jit(model.init_variables)(jax.random.key(seed))
