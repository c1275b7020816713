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

    Several sources by name are applied in turn: what a later one's rules leave as it is keeps the earlier one's values.

    Raises ConfigError if there is no such checkpoint, or for the reasons of `training.partial.restore`.
    """
    if job.job.init_from is None:
        return state
    fresh = state.variables()
    taken = _merge(fresh)
    for where, section in _sections(job.job.init_from):
        wanted = config_lib.call(fields.InitFrom, section, where)
        taken = partial.restore(taken, _merge(_source(wanted, where)), wanted.rules, f"{where}.rules", wanted.ignore)
    values = flatten(taken)
    collections = {name: map_with_path(lambda path, _: values[path], tree) for name, tree in fresh.items()}
    params = collections.pop("params")
    # The average starts where the parameters start, in arrays of its own: the step donates both.
    ema = None if state.ema is None else jax.tree.map(lambda mean, leaf: jnp.array(leaf, mean.dtype), state.ema, params)
    return state.replace(params=params, collections=collections, ema=ema)


def _sections(section: fields.Section) -> list[tuple[str, fields.Section]]:
    """What error messages call each source, and the source: one, or several by name."""
    if section and all(isinstance(value, Mapping) for value in section.values()):
        return [(f"config.init_from.{name}", source) for name, source in section.items()]
    return [("config.init_from", section)]


def _merge(variables: Mapping[str, Any]) -> dict[str, Any]:
    """All collections as one tree."""
    return unflatten({path: leaf for tree in variables.values() for path, leaf in flatten(tree).items()})


def _source(wanted: fields.InitFrom, where: str) -> Mapping[str, Any]:
    """Variables, on the host: of a workdir's checkpoint, or of weights from elsewhere."""
    own: dict[str, Any] = {"step": wanted.step, "ema": wanted.ema}
    if not (epath.Path(wanted.path) / pretrained.CHECKPOINTS).is_dir():
        if wanted.step is not None or wanted.ema:
            raise config_lib.ConfigError(f"{where}: {wanted.path} is no workdir: it has no step and no ema")
        own = {}
    try:
        return jax.device_get(dict(pretrained.load(wanted.path, **own, **wanted.fields).variables))
    except pretrained.WeightsError as error:
        raise config_lib.ConfigError(f"{where}.path: {error}") from error
