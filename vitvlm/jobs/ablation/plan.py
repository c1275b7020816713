"""Plan of an ablation config: for each variant, one resolved training config per stage. Nothing here runs."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.jobs import configs

FIXED = ("total", "batch_size", "budget")
"""Fields that every variant shares: they are the budget."""

Section = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of every variant, such as pre-training or fine-tuning.

    Attributes:
      name: of its folder, and the prefix of its metrics.
      base: a config file, "configs/vit_fashion.py:debug". In its argument, and in any string of the config,
        "{pretrain}" stands for the folder of this variant's stage of that name.
      overrides: nested fields that differ from the file for ALL variants; None takes a whole section out.
      label: for people; the name by default.
    """

    name: str
    base: str
    overrides: Section = dataclasses.field(default_factory=dict)
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """Variant of a sweep: one row of its table.

    Attributes:
      name: name of its folder and its row.
      overrides: nested fields by stage, {"train": {"model": {"patch_size": 4}}}.
      value: its place on the axis of the plots; without it, its place in the list.
      line: what the plots join it with, such as its connector where `value` is image tokens; by default all others.
      bases: config files by stage that stand in for the stage's own, such as another argument of the same file.
    """

    name: str
    overrides: Section
    value: float | None = None
    line: str = ""
    bases: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric to compare.

    Attributes:
      label: for people, "linear probe".
      metric: stage and metric, "pretrain.probe/top1"; its interval is the metrics that end in _low and _high.
      better: "max" or "min".
      percent: whether to show it times 100.
    """

    label: str
    metric: str
    better: str = "max"
    percent: bool = True


@dataclasses.dataclass(frozen=True)
class Ablation:
    """All fields of an ablation config.

    Attributes:
      title, question: what the page says at its top.
      axis: what `value` of a variant is, with its unit: "patch size (pixels)".
      budget: how long each stage trains, the same for every variant: {"train": "10 epochs"}.
      stages, variants, scores: see the classes above.
      costs_of: the stage whose tokens, FLOPs, step time and memory the table shows; the first by default.
    """

    title: str
    axis: str
    budget: Mapping[str, str]
    stages: tuple[Section, ...]
    variants: tuple[Section, ...]
    scores: tuple[Section, ...]
    question: str = ""
    costs_of: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked ablation.

    Attributes:
      title, question, axis, budget, costs_of: as in `Ablation`.
      stages, variants, scores: in their order.
      configs: the resolved config by variant and stage, or the error that a variant's overrides make.
    """

    title: str
    question: str
    axis: str
    budget: Mapping[str, str]
    costs_of: str
    stages: tuple[Stage, ...]
    variants: tuple[Variant, ...]
    scores: tuple[Score, ...]
    configs: Mapping[tuple[str, str], dict[str, Any] | ConfigError]

    def value(self, variant: Variant) -> float:
        return self.variants.index(variant) if variant.value is None else variant.value


def plan(config: ConfigDict | Section, folder: epath.PathLike) -> Plan:
    """Checks an ablation config and resolves every training in it.

    A variant whose overrides do not fit is no error here: it becomes a failed row, as any other failure of its does.

    Raises ConfigError for what concerns all variants: unknown fields, names given twice, a base that is not there.
    """
    fields = config_lib.call(Ablation, config, "config")
    stages = _named(Stage, fields.stages, "config.stages")
    variants = _named(Variant, fields.variants, "config.variants")
    scores = tuple(
        config_lib.call(Score, section, f"config.scores[{place}]") for place, section in enumerate(fields.scores)
    )
    names = [stage.name for stage in stages]
    config_lib.check_names(fields.budget, names, "config.budget")
    for name in names:
        if name not in fields.budget:
            raise ConfigError(f'config.budget.{name}: missing; write how long this stage trains, such as "10 epochs"')
    costs_of = fields.costs_of or names[0]
    if costs_of not in names:
        raise ConfigError(f"config.costs_of: no stage {costs_of!r}; {config_lib.suggest(costs_of, names)}")
    for place, score in enumerate(scores):
        if score.metric.partition(".")[0] not in names or "." not in score.metric:
            raise ConfigError(f"config.scores[{place}].metric: {score.metric!r} does not begin with a stage and a dot")
        if score.better not in ("max", "min"):
            raise ConfigError(f'config.scores[{place}].better: {score.better!r} is neither "max" nor "min"')
    resolved = {
        (variant.name, stage.name): resolve(stage, variant, fields.budget[stage.name], names, folder)
        for variant in variants
        for stage in stages
    }
    return Plan(fields.title, fields.question, fields.axis, fields.budget, costs_of, stages, variants, scores, resolved)


def variant_folder(folder: epath.PathLike, variant: str) -> epath.Path:
    return epath.Path(folder) / "variants" / variant


def resolve(
    stage: Stage, variant: Variant, budget: str, stages: list[str], folder: epath.PathLike
) -> dict[str, Any] | ConfigError:
    """The config of one stage of one variant, its references resolved; or what is wrong with the variant."""
    shared = {**stage.overrides, "total": budget}
    config = configs.load(stage.base, f"config.stages.{stage.name}.base")
    _override(config, shared, f"config.stages.{stage.name}.overrides")
    where = f"config.variants.{variant.name}.overrides"
    own = variant.overrides.get(stage.name, {})
    try:
        config = _own_base(config, stage, variant, shared, stages)
        config_lib.check_names(variant.overrides, stages, where)
        if fixed := [name for name in own if name in FIXED]:
            raise ConfigError(f"{where}.{stage.name}.{fixed[0]}: a variant may not change its budget")
        _override(config, own, f"{where}.{stage.name}")
    except ConfigError as error:
        return error
    places = {name: str(variant_folder(folder, variant.name) / name) for name in stages}
    return _filled(config_lib.plain(config), places)


def _own_base(config: ConfigDict, stage: Stage, variant: Variant, shared: Section, stages: list[str]) -> ConfigDict:
    """The config that a variant's own file gives in this stage, of the same batch size; the given one without such."""
    where = f"config.variants.{variant.name}.bases"
    config_lib.check_names(variant.bases, stages, where)
    if stage.name not in variant.bases:
        return config
    found = configs.load(variant.bases[stage.name], f"{where}.{stage.name}")
    _override(found, shared, f"config.stages.{stage.name}.overrides")
    if found.get("batch_size") != config.get("batch_size"):
        raise ConfigError(
            f"{where}.{stage.name}: its batch_size is {found.get('batch_size')} and that of the others "
            f"{config.get('batch_size')}: a variant may not change its budget; set it in the stage's overrides"
        )
    return found


def _override(config: ConfigDict, fields: Section, where: str) -> None:
    """Sets nested fields, keeping what refers to them; a field the file lacks is left to the job's own checks."""
    with config.unlocked():
        for name, value in fields.items():
            place = f"{where}.{name}"
            section = isinstance(config.get(name), ConfigDict)
            if section and isinstance(value, Mapping):
                _override(config[name], value, place)
            elif section and value is None:
                del config[name]
            else:
                _set(config, name, value, place)


def _set(config: ConfigDict, name: str, value: Any, where: str) -> None:
    try:
        config[name] = value
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, path in places.items():
            value = value.replace(f"{{{name}}}", path)
        return value
    if isinstance(value, Mapping):
        return {key: _filled(item, places) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(item, places) for item in value)
    return value


def _named(kind: type, sections: tuple[Section, ...], where: str) -> tuple[Any, ...]:
    built = tuple(
        config_lib.call(kind, section, f"{where}.{section.get('name', place)}")
        for place, section in enumerate(sections)
    )
    if not built:
        raise ConfigError(f"{where}: empty; give at least one")
    seen: set[str] = set()
    for each in built:
        if not re.fullmatch(r"[\w.+-]+", each.name) or each.name.startswith("."):
            raise ConfigError(f"{where}.{each.name}: a name becomes a folder: letters, digits, and . _ + - only")
        if each.name in seen:
            raise ConfigError(f"{where}.{each.name}: this name is given twice")
        seen.add(each.name)
    return built
