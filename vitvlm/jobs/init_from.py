"""Fine-tuning starts here: parameters of another training, or of published weights, by rules over paths.

Other collections, such as batch statistics, follow the same rules: a norm's "stem/norm/mean" lies beside its
"stem/norm/scale".
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from vitvlm import pretrained
from vitvlm.core import config as config_lib
from vitvlm.core.paths import flatten, map_with_path, unflatten
from vitvlm.jobs import fields
from vitvlm.jobs.setup import Setup
from vitvlm.training import partial
from vitvlm.training.state import TrainState


def apply(job: Setup, state: TrainState) -> TrainState:
    """The fresh state with the parameters that `config.init_from` names; the state itself if it names none.

    Raises ConfigError if there is no such checkpoint, or for the reasons of `training.partial.restore`.
    """
    if job.job.init_from is None:
        return state
    wanted = config_lib.call(fields.InitFrom, job.job.init_from, "config.init_from")
    fresh = state.variables()
    taken = partial.restore(
        _merge(fresh), _merge(_source(wanted)), wanted.rules, "config.init_from.rules", wanted.ignore
    )
    values = flatten(taken)
    collections = {name: map_with_path(lambda path, _: values[path], tree) for name, tree in fresh.items()}
    params = collections.pop("params")
    # The average starts where the parameters start, in arrays of its own: the step donates both.
    ema = None if state.ema is None else jax.tree.map(lambda mean, leaf: jnp.array(leaf, mean.dtype), state.ema, params)
    return state.replace(params=params, collections=collections, ema=ema)


def _merge(variables: Mapping[str, Any]) -> dict[str, Any]:
    """All collections as one tree."""
    return unflatten({path: leaf for tree in variables.values() for path, leaf in flatten(tree).items()})


def _source(wanted: fields.InitFrom) -> Mapping[str, Any]:
    """Variables, on the host: of a workdir's checkpoint, or of weights from elsewhere."""
    own: dict[str, Any] = {"step": wanted.step, "ema": wanted.ema}
    if not (epath.Path(wanted.path) / pretrained.CHECKPOINTS).is_dir():
        if wanted.step is not None or wanted.ema:
            raise config_lib.ConfigError(f"config.init_from: {wanted.path} is no workdir: it has no step and no ema")
        own = {}
    try:
        return jax.device_get(dict(pretrained.load(wanted.path, **own, **wanted.fields).variables))
    except pretrained.WeightsError as error:
        raise config_lib.ConfigError(f"config.init_from.path: {error}") from error
