"""The fields of a job's config. Every section is checked against what it configures, before anything is compiled."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from vitvlm.core import classes
from vitvlm.core import config as config_lib
from vitvlm.core.limits import Count, NotNegative, Seed, Share, Within
from vitvlm.data.sources import Labelling, Scores

Section = Mapping[str, Any]
Workers = Annotated[int, Within(0, 4096)]


@dataclasses.dataclass(frozen=True)
class Split:
    """Section of a config that chooses examples and the operations on them.

    Attributes:
      split: "train", "test[:10%]", …
      ops: operations on each example, such as "decode|flip|normalize".
      source: "tfds:fashion_mnist", "folder:PATH", "emoji", …
      labels_fraction: share of the labels that may be seen, the same for every class and chosen by a fixed seed.
      label: the column or JSON field of the label, see `data.sources.labels.Labelling`; by default the data section's,
        and so are the next two.
      label_separator: what is between the classes in a CSV cell of several labels.
      label_names: the classes in the order of their index, or a file of them, a name a line.
      class_names: {class of the source: what it is called in the job}, or the path of a JSON file that holds it;
        several classes may become one.
      scores: a file of scores of the examples, by id, which become a column; see `data.sources.scored.Scores`.
      score: which score of the file.
      min_score, keep_share: examples with less are left out; only this share, those with the highest, is kept.
    """

    split: str
    ops: str
    source: str
    labels_fraction: float = 1.0
    label: str | None = None
    label_separator: str | None = None
    label_names: Any = ()
    class_names: Mapping[str, str] | str = dataclasses.field(default_factory=dict)
    scores: str = ""
    score: str = Scores.column
    min_score: float | None = None
    keep_share: float = 1.0

    def __post_init__(self) -> None:
        """Raises ConfigError for a rule of scores that cannot be meant."""
        Scores(self.scores, self.score, self.min_score, self.keep_share)

    @property
    def scoring(self) -> Scores:
        return Scores(self.scores, self.score, self.min_score, self.keep_share)

    @property
    def labelling(self) -> Labelling:
        return Labelling(self.label, self.label_separator, self.label_names)


@dataclasses.dataclass(frozen=True)
class Data:
    """The data section: one source, a training split and an evaluation split.

    Attributes:
      source: "tfds:fashion_mnist", "folder:PATH", "emoji", …; train and eval may name sources of their own.
      train, eval: the sections of the training's split and of the evaluations', see `Split`.
      class_names: {class of the source: what it is called in the job}, see `Split`; train and eval may have their own.
      label: the column or JSON field of the label (jsonl, csv, webdataset), if it is not "label" or webdataset's "cls".
        This and the next two are also those of train, eval and evaluators that name a source of the same kind.
      label_separator: what is between the classes in a CSV cell of several labels.
      label_names: the classes in the order of their index, or a file of them, a name a line; collected if not given.
      balance: of the training: 1 draws each class equally often, 0 each image once an epoch; in between, a class of
        n_c images is drawn in proportion to n_c^(1 - balance). See `data.balance`.
      workers: processes that read and decode; 0 does it in the training's own process.
      max_unreadable_fraction: share of unreadable images above which the job stops.
      shuffle_buffer: examples that each reader of a streamed source (webdataset) holds, encoded, and draws from.
    """

    source: str
    train: Section
    eval: Section
    workers: Workers = 0
    max_unreadable_fraction: Share = 0.01
    shuffle_buffer: Count = 1000
    balance: Share = 0.0
    label: str | None = None
    label_separator: str | None = None
    label_names: Any = ()
    class_names: Mapping[str, str] | str = dataclasses.field(default_factory=dict)

    def split(self, section: Section, where: str) -> Split:
        shared: dict[str, Any] = {"source": self.source, "class_names": self.class_names}
        if _kind(section.get("source", self.source)) == _kind(self.source):
            shared |= {"label": self.label, "label_separator": self.label_separator, "label_names": self.label_names}
        split = config_lib.call(Split, {**shared, **section}, where)
        return dataclasses.replace(split, class_names=classes.mapping(split.class_names, f"{where}.class_names"))


def _kind(source: Any) -> str:
    return str(source).partition(":")[0]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Section of a config that says when the state is saved and which checkpoints are kept.

    Attributes:
      every: duration between saves.
      keep_last: how many of the newest checkpoints stay.
      best: an evaluation's metric such as "test/top1"; the checkpoint with its best value stays too.
      best_mode: "max" or "min".
    """

    every: str | int = "10%"
    keep_last: Count = 2
    best: str | None = None
    best_mode: str = "max"


@dataclasses.dataclass(frozen=True)
class Log:
    """Section of a config for metrics besides the terminal and metrics.jsonl; may change when a job resumes.

    Attributes:
      every: steps between rows of training metrics.
      tensorboard: also write event files.
      wandb: project name of Weights & Biases.
      peak_flops: FLOP/s of all devices together, for MFU; by default by the devices' name, or measured on a CPU.
    """

    every: Count = 50
    tensorboard: bool = False
    wandb: str | None = None
    peak_flops: NotNegative | None = None


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Section of a config by which a frozen image encoder's features are computed once, see `training.feature_cache`.

    Attributes:
      path: a folder on a local disk, for any number of jobs; may change when a job resumes.
      dtype: "float16", or "float32" for the very numbers of the encoder.
    """

    path: str
    dtype: str = "float16"

    def __post_init__(self) -> None:
        """Raises ConfigError for a dtype or a path that cannot be meant."""
        where = "config.feature_cache"
        if self.dtype not in ("float16", "float32"):
            raise config_lib.ConfigError(f"{where}.dtype: {self.dtype!r}; it is float16 or float32")
        if not self.path or "://" in self.path:
            raise config_lib.ConfigError(f"{where}.path: {self.path!r}; give a folder on a local disk")


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Start from the parameters of another training instead of random ones.

    Attributes:
      path: that training's workdir, or a folder or file of weights that `pretrained.load` reads.
      rules: `(pattern of our path, template of its path, or None to keep the fresh value)`; first match wins.
      ignore: patterns of its parameters that are not wanted here.
      step: the checkpoint: "latest" (the default), "best", or a step.
      ema: take its averaged parameters.
      fields: what a file of weights does not say of its model, such as heads or image_size.
      class_names: {class of this job: class of the source}, where a head is taken and they are called otherwise; or
        the path of a JSON file that holds it.
    """

    path: str
    rules: tuple = ((".*", r"\g<0>"),)
    ignore: tuple = ()
    step: int | str | None = None
    ema: bool = False
    fields: Section = dataclasses.field(default_factory=dict)
    class_names: Mapping[str, str] | str = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Fields of a config for where arrays live.

    Attributes:
      mesh: devices per axis; -1 takes the rest. An axis that is not named has one device, and `data` the rest.
      sharding: a preset ("replicated", "fsdp", "tensor", "fsdp+tensor") or rules.
    """

    mesh: Section = dataclasses.field(default_factory=dict)
    sharding: Any = "replicated"

    def __post_init__(self) -> None:
        left = 1 if -1 in self.mesh.values() else -1
        object.__setattr__(self, "mesh", {"data": left, "fsdp": 1, "tensor": 1, **self.mesh})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Devices):
    """Fields of a config for its model: what is trained, planned or restored.

    Attributes:
      task: the objective: its name and fields.
      model: the model: its name and fields; `num_classes` may be "data", for as many as the training data has.
      classes: names of the head's classes in their order; by default those of the training data, which it may also have
        more than. Written to the workdir, so that they stay.
      optimizer: of it, the model takes `freeze`: which parameters do not train.
      frozen_dtype: how parameters that `optimizer.freeze` holds still are stored: "float32", "bfloat16", "float16",
        "int8", "nf4" or None (as the model makes them), or rules over their paths; see `training.storage.store`.
      lora: low-rank adapters beside frozen matrices, for which see `training.adapters.plan`; None for none.
    """

    task: Section
    model: Section
    classes: Sequence[str] | None = None
    optimizer: Section = dataclasses.field(default_factory=dict)
    frozen_dtype: Any = None
    lora: Section | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Fields of a config for its data.

    Attributes:
      data: what is trained and evaluated on, see `Data`.
      batch_size: examples per step, over all devices.
      seed: of the parameters, the order of the data and every random choice.
    """

    data: Section
    batch_size: Count
    seed: Seed = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Field of a config for what is evaluated.

    Attributes:
      evals: evaluations by name; see `jobs.evaluation.evaluations`.
    """

    evals: Mapping[str, Section] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Fields of a config for its training.

    Attributes:
      total: how long to train.
      batch_size, seed: see `Inputs`.
      optimizer: how parameters are updated, and which, see `training.optimizer`.
      schedule: the learning rate, see `training.schedules`.
      accumulate: micro-batches per step.
      unroll: the program holds the micro-batches one next to the other instead of a loop over them: faster on the cores
        of a CPU.
      ema_decay: of the averaged parameters, which are then what is evaluated; None for no average.
      init_from: where parameters come from, see `InitFrom`; or several such by name, applied in turn.
      checkpoint: when the state is saved, and which checkpoints stay, see `Checkpoint`.
      log: metrics besides the terminal and metrics.jsonl, see `Log`.
      feature_cache: see `FeatureCache`; None: every step runs the image encoder.
    """

    total: str | int
    batch_size: Count
    optimizer: Section
    schedule: Section
    seed: Seed = 0
    accumulate: Count = 1
    unroll: bool = False
    ema_decay: Share | None = None
    init_from: Section | None = None
    checkpoint: Section = dataclasses.field(default_factory=dict)
    log: Section = dataclasses.field(default_factory=dict)
    feature_cache: Section | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Training, Evaluations, Inputs, Model):
    """All fields of a config; each part of a setup takes its own by `read`.

    Attributes, besides those of the parts:
      image_size: for the config's own references; models and operations have their own fields.
    """

    image_size: Any = None


STAGES = "stages"  # the section of a config whose stages are jobs of their own; see `jobs.training.stages`

Part = TypeVar("Part")


def read(part: type[Part], config: Mapping[str, Any]) -> Part:
    """Takes a part's fields from a config, checked.

    Fields of other parts are left alone. Raises ConfigError for a missing one, and for a name that no part has.
    """
    if STAGES in config:
        raise config_lib.ConfigError(f"config.{STAGES}: give the config of one stage, see jobs.training.stages.configs")
    config_lib.check_names(config, [field.name for field in dataclasses.fields(Job)], "config")
    own = {field.name for field in dataclasses.fields(part)}
    return config_lib.call(part, {name: value for name, value in config.items() if name in own}, "config")
