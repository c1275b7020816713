"""Weights in and out: what other code bases trained, and what they can load.

loaded = pretrained.load("path/to/folder")
loaded.model.apply(loaded.variables, images).logits
pretrained.save(loaded, "path/to/another")

`open` reads headers only; `load` then puts every tensor from its file straight where it belongs, see `Place`.
"""

import os
from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.gguf import is_gguf
from vitvlm.core.paths import flatten
from vitvlm.pretrained import gguf, huggingface, layouts, npz, onnx, open_clip, peft, timm, workdir
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.loaded import Place, Pretrained, blame_lazily
from vitvlm.training.workdir import CHECKPOINTS, latest_stage

__all__ = ["CHECKPOINTS", "Place", "Pretrained", "WeightsError", "adapters", "load", "open", "save"]

FILES = {".npz": npz.open, ".onnx": onnx.open}


def _save_adapters(loaded: Pretrained, folder: Path) -> None:
    peft.save(loaded, huggingface.family_of(loaded), folder)


WRITERS = {
    "hf": huggingface.save,
    "timm": timm.save,
    "open_clip": open_clip.save,
    "peft": _save_adapters,
    "vitvlm": workdir.save,
}


def load(path: str | os.PathLike, place: Place = None, **fields: Any) -> Pretrained:
    """Model, weights and preprocessing, as the source itself says:

    - a folder of Hugging Face `transformers` or of timm: config.json, and safetensors or PyTorch's files, or shards;
    - a folder of open_clip: open_clip_config.json, and open_clip_model.safetensors or open_clip_pytorch_model.bin;
      where there is a config.json too, that is the one that is read;
    - `file.npz`, or a subtree of one, `file.npz:img`, of big_vision or vision_transformer;
    - one file of PyTorch's or safetensors, with any suffix, in a layout of `layouts.LAYOUTS`, or beside its config;
      `subtree=` chooses one of several models in it; a folder without a config that has one such file;
    - `file.onnx` with a DINOv2 in it;
    - `file.gguf` of llama.cpp with a decoder in it, quantized or not, or its first part; a folder with one such file;
    - a workdir of a training of ours: its latest checkpoint, or that of `step=`.

    Args:
      place: where the variables go, see `Place`: by default onto the default device, whole.
      fields: `adapter`, a folder of the `peft` package's with a LoRA of this model, which is merged into it or, with
        `merge=False`, stands beside its matrices; and fields of the model that leave its parameters as they are, such
        as scan, remat or dtype; for a file that
        has no config also what an error asks for, such as image_size or heads.

    One array is read at a time, on the host, and each device is given its own part of it. Files of safetensors and of
    PyTorch and arrays of `np.savez` are mapped into memory. Of safetensors a process reads only what its own devices
    hold; the others have checksums, which are taken over whole tensors. An array of `np.savez_compressed` or of a
    checkpoint is read whole, one at a time; ONNX is one message, which is parsed as a whole.

    Raises WeightsError that says which file is wrong, and how. No code in a checkpoint is ever executed.
    """
    return open(path, **fields).placed(place)


def open(
    path: str | os.PathLike, *, adapter: str | os.PathLike | None = None, merge: bool = True, **fields: Any
) -> Pretrained:
    """Opens what `load` loads: its variables are still in the file, as `core.placing.Lazy` arrays.

    Names, shapes and dtypes are known and checked. `opened.placed(place)` reads the numbers. Raises WeightsError.
    """
    path = Path(path)
    opened = _open(path, fields)
    if adapter is not None:
        try:
            opened = peft.open(opened, huggingface.family_of(opened), Path(adapter), merge)
        except ConfigError as error:
            raise WeightsError(f"{adapter}: names layers of transformers, and {path}: {error}") from None
    return blame_lazily(opened, path)


def _open(path: Path, fields: dict[str, Any]) -> Pretrained:
    name, colon, subtree = path.name.partition(".npz:")
    if colon:
        return npz.open(path.with_name(name + ".npz"), subtree, **fields)
    if is_gguf(path):
        return gguf.open(path, **fields)
    if path.suffix in FILES:
        return FILES[path.suffix](path, **fields)
    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder")
    if path.is_file():
        return layouts.open(path, **fields)
    stage = Path(latest_stage(path))
    if (stage / CHECKPOINTS).is_dir():
        return workdir.open(stage, **fields)
    if (read := layouts.folder_reader(path)) is not None:
        return read(path, **fields)
    if (file := layouts.alone(path)) is not None:
        return layouts.open(file, **fields)
    if (file := gguf.alone(path)) is not None:
        return gguf.open(file, **fields)
    raise WeightsError(
        f"{path}: neither the workdir of a training nor weights: no {CHECKPOINTS}, no {huggingface.CONFIG}, "
        f"no {open_clip.CONFIG}, no file {', '.join(layouts.SUFFIXES)}"
    )


def adapters(loaded: Pretrained, folder: str | os.PathLike | None = None) -> dict[str, Any]:
    """The parts of a model's adapters by path, as a loop of blocks has them: its own, or those in a folder of `peft`'s.

    Raises WeightsError for a folder that does not fit the model.
    """
    if folder is not None:
        return flatten(peft.read(Path(folder), huggingface.family_of(loaded), loaded.model))
    return flatten(peft.looped(loaded.adapters or {}))


def save(loaded: Pretrained, path: str | os.PathLike, format: str = "hf") -> None:
    """Writes a folder in another code base's format: "hf" for `transformers`, "timm", "open_clip"; "vitvlm" is our own;
    "peft" has the adapters alone of a model that was trained with `config.lora`.

    Raises ConfigError for an unknown format, or a model that the format cannot express.
    """
    if format not in WRITERS:
        raise ConfigError(f"format {format!r}; {suggest(format, WRITERS)}")
    WRITERS[format](loaded, Path(path))
