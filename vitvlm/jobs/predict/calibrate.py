"""The temperature that fits a model's probabilities to held-out images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.loader import make_loader
from vitvlm.evaluation import calibration
from vitvlm.jobs.setup.classes import Head
from vitvlm.jobs.setup.data import DataSetup, open_split
from vitvlm.pretrained import Pretrained
from vitvlm.pretrained.predicting import Outputs, Request, passed
from vitvlm.pretrained.scoring import is_multi_label

SPLIT = "test"


def fit(loaded: Pretrained, held_out: str = "", request: Request | None = None) -> tuple[calibration.Calibration, str]:
    """Fits a temperature to labelled images; returns it, and a line that says on what and what it does.

    Args:
      held_out: a source such as folder:PATH, of which the split "test" is taken; by default the evaluation split of
        the training that the weights are of.
      request: its batch_size and workers are used.

    Raises ConfigError for a model that has no classes, or several at a time, and for weights without data of their own
    where no source is given; DataError for a source whose classes the model does not know.
    """
    request = request or Request()
    if not loaded.model.num_classes:
        raise ConfigError(
            "temperature: held-out calibrates the probabilities of a head's classes, and there is no head"
        )
    if is_multi_label(loaded):
        raise ConfigError("temperature: held-out is for one class per image; these weights give several: give a number")
    split = _data(loaded, held_out, request).eval
    head = Head(
        loaded.class_names, loaded.model.num_classes, "the weights' classes", loaded.source["format"] != "vitvlm"
    )
    source = head.score(open_split(split)).source
    outputs = Outputs(loaded, ["logits"])
    loader = make_loader(source, operations.parse(split.ops), seed=0, tries=len(source))
    logits, labels = [], []
    for batch, _ in passed(loader, outputs.rows(request.batch_size), request.workers):
        real = batch["example_mask"] > 0
        labels.append(batch["label"][real])
        logits.append(outputs({name: value for name, value in batch.items() if name != "label"})["logits"][real])
    found = calibration.fit(np.concatenate(logits), np.concatenate(labels))
    return found, f"{found} (of {source.name})"


def _data(loaded: Pretrained, held_out: str, request: Request) -> DataSetup:
    config: Mapping[str, Any] = loaded.source.get("config") or {}
    if held_out:
        ops = request.preprocessing or loaded.preprocessing
        section = {"source": held_out, "train": {"split": "train", "ops": ops}, "eval": {"split": SPLIT, "ops": ops}}
        return DataSetup.of({"data": section, "batch_size": request.batch_size})
    if loaded.source.get("format") != "vitvlm" or "source" not in config.get("data", {}):
        raise ConfigError(
            "temperature: held-out: these weights are not of a training with data here: give --held_out, a source of "
            "labelled images such as folder:PATH"
        )
    return DataSetup.of(config)
