"""Our own trainings as weights: the model of a workdir's config with the parameters of one of its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.core.placing import place_tree
from vitvlm.data import operations
from vitvlm.data.operations import text
from vitvlm.nn import lora
from vitvlm.nn.stacking import stack_blocks, unstack_blocks
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.tasks import TASKS
from vitvlm.training import chosen, stored
from vitvlm.training.checkpoints import CheckpointError, Checkpoints
from vitvlm.training.workdir import CHECKPOINTS, WorkdirError, claim, read_config


def open(folder: Path, step: chosen.Which = None, ema: bool | None = None, **fields: Any) -> Pretrained:
    """A model as it was trained; its preprocessing and its tokenizer are those of the config's evaluation.

    Of the checkpoint, its parameters or their averages are read, and the model's other collections; never the
    optimizer or what is the task's own.

    Args:
      step: the checkpoint: "latest" (the default), "best" by `config.checkpoint.best`, or a step; with ":ema" or ":raw"
        behind it, or these words alone, it says `ema` too.
      ema: whether to take the averaged parameters; by default, exactly if there are such.
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype, dropout.

    Raises WeightsError if there is no whole checkpoint, or it lacks the averaged parameters that were requested.
    """
    try:
        config = read_config(folder)
        wanted, best = chosen.Choice.of(step, ema), chosen.rule(config)
        with Checkpoints(folder / CHECKPOINTS, best=best, read_only=True) as checkpoints:
            restored = checkpoints.first_whole(checkpoints.open, wanted.step(checkpoints))
            state, ema = restored.state, wanted.ema
            if ema and "ema" not in state:
                raise WeightsError(f"{folder}: holds no averaged parameters: it was trained without config.ema_decay")
            averaged = "ema" in state if ema is None else ema
            said = chosen.described(checkpoints, restored.step, best, averaged)
    except (CheckpointError, WorkdirError) as error:
        raise WeightsError(str(error)) from error
    except ConfigError as error:
        raise WeightsError(f"{folder}: {error}") from error
    task = (config.get("task") or {}).get("name")
    left = TASKS.get(task).own_collections if task is not None else ()
    variables = {name: tree for name, tree in stored.variables(state, ema).items() if name not in left}
    try:
        section = {**config["model"], **fields}
        model = _build(section)
    except ConfigError as error:
        raise WeightsError(f"{folder}: {error}") from error
    ops = config["data"]["eval"]["ops"] and operations.parse(config["data"]["eval"]["ops"])
    if "scan" in fields:
        change = stack_blocks if fields["scan"] else unstack_blocks
        variables["params"] = change(variables["params"])
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=ops and text.without_texts(ops),
        texts=ops and text.rules_of(ops),
        source={
            "path": str(folder),
            "format": "vitvlm",
            "model": section,
            "config": config,
            "checkpoint": {
                "name": said,
                "step": restored.step,
                "ema": averaged,
                "metrics": dict(restored.metrics),
            },
            "base": (config.get("init_from") or {}).get("path"),
            "trained_besides": [path for path in paths.flatten(state["params"]) if not lora.is_adapter(path)],
        },
        class_names=tuple(config["classes"]) if config.get("classes") else None,
        adapters=stored.adapters(state, ema) or None,
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes a workdir of one checkpoint, at step 0, which `load`, `init_from` and `evaluate.py --weights` read.

    Raises ConfigError for a model whose fields are not known because it was not loaded, or was changed since, and for a
    folder that holds a training.
    """
    section = loaded.source.get("model")
    if section is None or _build(section) != loaded.model:
        raise ConfigError("format vitvlm: the model is not as it was loaded, so its fields are not known")
    if (folder / CHECKPOINTS).exists():
        raise ConfigError(f"{folder}: holds checkpoints already: choose another folder")
    ops = [loaded.preprocessing] if loaded.preprocessing else []
    ops += [text.tokenizing(loaded.texts)] if loaded.texts else []
    config = {"model": section, "data": {"eval": {"ops": "|".join(ops) or None}}}
    if loaded.class_names is not None:
        config["classes"] = list(loaded.class_names)
    collections = place_tree(dict(loaded.variables))  # lazy arrays are read now
    params = collections.pop("params")
    try:
        claim(folder, config)
        with Checkpoints(folder / CHECKPOINTS, config=config) as checkpoints:
            checkpoints.save(0, {"params": params, "collections": collections})
    except TypeError as error:
        raise ConfigError(f"format vitvlm: {error}: leave out the fields that a config cannot name") from error


def _build(section: Mapping[str, Any]) -> nn.Module:
    fields = {name: _tuples(value) for name, value in section.items() if name != "name"}
    return models.build(section["name"], **fields)


def _tuples(value: Any) -> Any:
    """Lists, which are what JSON makes of tuples, as tuples again."""
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
