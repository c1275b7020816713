"""The files by which sentence-transformers says, beside config.json, how a text encoder's tokens are pooled."""

import json
from pathlib import Path
from typing import Any

from vitvlm.core import json_texts
from vitvlm.core.files import LARGEST_VOCABULARY, read_text
from vitvlm.models.bert import Bert
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.tensors import read_json

MODULES, POOLING = "modules.json", "1_Pooling"
PREFIX = "pooling_mode_"
MODES = {f"{PREFIX}cls_token": "first", f"{PREFIX}mean_tokens": "mean"}
# A norm at the end makes vectors of length 1, which two towers and cosines do anyway.
UNDERSTOOD = ("Transformer", "Pooling", "Normalize")


def fields(folder: Path) -> dict[str, Any]:
    """Reads {"pool": …} of a folder of sentence-transformers; returns nothing for other folders.

    Raises WeightsError for a pooling, or a layer after it, that we do not have.
    """
    if not (folder / MODULES).is_file():
        return {}
    try:
        modules = [
            (each["type"].rpartition(".")[2], str(each["path"]))
            for each in json_texts.loads(read_text(folder / MODULES, LARGEST_VOCABULARY))
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{folder / MODULES}: no list of modules with type and path: {error}") from error
    if others := [kind for kind, _ in modules if kind not in UNDERSTOOD]:
        raise WeightsError(f"{folder / MODULES}: {', '.join(others)}: only {', '.join(UNDERSTOOD)} are understood")
    paths = [path for kind, path in modules if kind == "Pooling"]
    if len(paths) != 1:
        raise WeightsError(f"{folder / MODULES}: {len(paths)} modules of type Pooling; one is understood")
    config = folder / paths[0] / "config.json"
    modes = [name for name, on in read_json(config).items() if name.startswith(PREFIX) and on is True]
    if len(modes) != 1 or modes[0] not in MODES:
        raise WeightsError(
            f"{config}: pools by {', '.join(modes) or 'nothing'}; one of {', '.join(MODES)} is understood"
        )
    return {"pool": MODES[modes[0]]}


def write(model: Bert, folder: Path) -> None:
    """The same for a model that pools in a way that config.json cannot say: not by its pooler."""
    if model.pool == "cls":
        return
    modules = [("", "Transformer"), (POOLING, "Pooling")]
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    modes = {name: model.pool == pool for name, pool in MODES.items()}
    (folder / POOLING).mkdir(exist_ok=True)
    (folder / POOLING / "config.json").write_text(
        json.dumps({"word_embedding_dimension": model.width, **modes}, indent=2) + "\n"
    )
    (folder / MODULES).write_text(json.dumps(described, indent=2) + "\n")
