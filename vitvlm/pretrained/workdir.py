"""Our own trainings as weights: the model of a workdir's config with the parameters of one of its checkpoints."""

from pathlib import Path
from typing import Any

import jax

from vitvlm import models
from vitvlm.core import config as config_lib
from vitvlm.nn.stack import stack_blocks, unstack_blocks
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.training.checkpoints import CheckpointError, Checkpoints
from vitvlm.training.workdir import WorkdirError, read_config

CHECKPOINTS = "checkpoints"


def load(folder: Path, step: int | None = None, ema: bool | None = None, **fields: Any) -> Pretrained:
    """A model as it was trained; its preprocessing is the operations of the config's evaluation.

    Args:
      step: the checkpoint; the latest by default.
      ema: whether to take the averaged parameters; by default, exactly if there are such.
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype, dropout.

    Raises WeightsError if there is no whole checkpoint, or it holds no averaged parameters that were asked for.
    """
    try:
        config = read_config(folder)
        with Checkpoints(folder / CHECKPOINTS, read_only=True) as checkpoints:
            state = checkpoints.restore(checkpoints.shapes(step), step).state
    except (CheckpointError, WorkdirError) as error:
        raise WeightsError(str(error)) from error
    if ema and "ema" not in state:
        raise WeightsError(f"{folder}: holds no averaged parameters: it was trained without config.ema_decay")
    params = state["params"]
    if "ema" in state and ema is not False:
        params = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), state["ema"], params)
    try:
        section = {**config["model"], **fields}
        model = models.build(section.pop("name"), **section)
    except config_lib.ConfigError as error:
        raise WeightsError(f"{folder}: {error}") from error
    if "scan" in fields:
        params = stack_blocks(params) if fields["scan"] else unstack_blocks(params)
    return Pretrained(
        model=model,
        variables={"params": params, **state.get("collections", {})},
        preprocessing=config["data"]["eval"]["ops"],
        tokenizer=None,
        source={"path": str(folder), "format": "vitvlm", "config": config},
    )
