"""Evaluates published weights: a setup around a model that is already there, without a training."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from vitvlm import pretrained
from vitvlm.core import config as config_lib
from vitvlm.core import own_files
from vitvlm.data.operations import text
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.setup.classes import Head
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.tasks import task_for
from vitvlm.training import sharding
from vitvlm.training.workdir import WorkdirError

BATCH_SIZE = 32  # where the config says none
_LOG = logging.getLogger(__name__)
RECORD = "weights.json"
TEXTS = ("field", "max_texts", "separator", "surplus")  # arguments of `tokenize`


def evaluate_weights(
    weights: epath.PathLike,
    folder: epath.PathLike,
    names: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    force: bool = False,
    fields: Mapping[str, Any] | None = None,
) -> list[evaluate.Row]:
    """Runs evaluators on weights from elsewhere.

    Args:
      weights: what `pretrained.load` reads.
      folder: where results go; it remembers whose they are, and takes those of no other weights.
      names: sections of the config's `evals`, or evaluator types, which then run with their defaults; all sections
        by default.
      config: `data` and perhaps `evals`, `batch_size` and `mesh`. Operations that `data.train` or `data.eval` leave
        out are the weights' own preprocessing and tokenizer; `data.texts` says which texts: the `field`, how many it
        holds at the most (`max_texts`), what becomes of a `surplus`, and, if it holds several in a string, the
        `separator` between them.
      force: break the lock of another evaluation in this folder.
      fields: what the weights' own files do not say, such as heads, or which of several models (subtree).

    The protocol says so where `data.eval.ops` prepares images otherwise than the weights' own files say.
    The data's classes are found by name among those of the weights' head, and what is not the same to the letter is
    said in the protocol; `data.class_names` says by hand which is which.
    Raises ConfigError, DataError or WorkdirError with one line that says what to do.
    """
    try:
        loaded = pretrained.open(weights, **(fields or {}))
    except pretrained.WeightsError as error:
        raise config_lib.ConfigError(f"--weights: {error}") from error
    wanted = config_lib.plain(config or {})
    if "data" not in wanted:
        raise config_lib.ConfigError("config.data: missing; weights bring no data: give a --config that has some")
    wanted = {"batch_size": BATCH_SIZE, **wanted, "data": _with_preprocessing(wanted["data"], loaded)}
    data = DataSetup.of(wanted)
    count = loaded.model.num_classes
    head = Head(loaded.class_names, count, "the weights' classes", published=True) if count else None
    model = ModelSetup.around(task_for(loaded.model), head, wanted, data)
    chosen = evaluate.sections(wanted, names)
    folder = _claim(epath.Path(folder), str(weights), fields or {})
    note = evaluate.prepared(data.eval.ops, loaded.preprocessing, "the weights' own") if not loaded.texts else ""
    try:
        placed = loaded.placed(sharding.variables_by(model.shard_by, model.mesh))
    except pretrained.WeightsError as error:
        raise config_lib.ConfigError(f"--weights: {error}") from error
    return evaluate.run(model, data, chosen, placed.variables, folder, force=force, note=note)


def _with_preprocessing(data: Mapping[str, Any], loaded: pretrained.Pretrained) -> dict[str, Any]:
    """The data section, both splits with operations; `texts` go into them."""
    filled = dict(data)
    told = filled.pop("texts", {})
    config_lib.check_names(told, TEXTS, "config.data.texts")
    preprocessing = loaded.preprocessing
    if preprocessing and loaded.texts:
        preprocessing += "|" + text.tokenizing(loaded.texts, **told)
    for name in ("train", "eval"):
        section = dict(data.get(name, {}))
        if "ops" not in section and preprocessing is None:
            raise config_lib.ConfigError(
                f"config.data.{name}.ops: missing, and the weights do not say how their images are prepared: give it"
            )
        filled[name] = {"ops": preprocessing, **section}
    return filled


def _claim(folder: epath.Path, weights: str, fields: Mapping[str, Any]) -> epath.Path:
    """The folder, once it is sure that its results are those of these weights, read with these fields."""
    record = folder / RECORD
    own = json.loads(json.dumps({"path": weights, **({"fields": dict(fields)} if fields else {})}))
    if (folder / "config.json").exists():
        raise WorkdirError(f"{folder} is the workdir of a training: choose another --workdir for these weights")
    before = own_files.read(record, "path") if record.exists() else own
    if before is not None and before != own:
        told = f" with {before['fields']}" if before.get("fields") else ""
        raise WorkdirError(
            f"{folder} holds evaluations of {before['path']}{told}: choose another --workdir for {weights}"
        )
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if before is None and (folder / evaluate.EVALUATIONS).exists():
            aside = own_files.set_aside(folder / evaluate.EVALUATIONS)
            _LOG.warning("%s: the record of whose evaluations these are is damaged; they are kept as %s", folder, aside)
        own_files.write(record, own)
    return folder
