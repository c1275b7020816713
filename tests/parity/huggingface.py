"""Small random-weight models of `transformers`, loaded by path into ours, and ours loaded by `transformers`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import PreTrainedModel

from vitvlm import pretrained
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.pretrained.entries import in_memory
from vitvlm.pretrained.huggingface import FAMILIES
from vitvlm.pretrained.tables import Table

torch.set_num_threads(1)


def randomise(model: PreTrainedModel, seed: int = 0) -> None:
    """Moves every trainable parameter and running statistic, so that a wrong mapping of any shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_var"):
            buffer *= torch.exp(0.3 * torch.randn(buffer.shape, generator=generator))
    model.eval()


def load(model: PreTrainedModel, folder: Path, **fields: Any) -> pretrained.Pretrained:
    """Loads our model from the folder that `save_pretrained` writes."""
    model.save_pretrained(folder)
    return pretrained.load(folder, **fields)


def gradients(model: PreTrainedModel, loaded: pretrained.Pretrained, folder: Path) -> dict[str, Any]:
    """Returns the reference's gradients as a tree of our parameters in looped form, and overwrites its parameters.

    A parameter without a gradient (fixed positions) is returned as it is.
    """
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data = parameter.grad
    model.save_pretrained(folder)
    tensors = in_memory(load_file(folder / "model.safetensors"))
    family = FAMILIES[json.loads((folder / "config.json").read_text())["architectures"][0]]
    tensors = tensors.renamed(family.rename)
    return Table.reading(family.rows(loaded.model, tensors), tensors).read(tensors)["params"]


def check_written_back(model: PreTrainedModel, loaded: pretrained.Pretrained, folder: Path, **fields: Any) -> None:
    """Ours, saved, is loaded by `transformers` with nothing missing or left over, and has the same weights and config.

    Args:
      fields: for `from_pretrained`, what the model was built with besides its config.
    """
    pretrained.save(loaded, folder)
    back, info = type(model).from_pretrained(folder, output_loading_info=True, **fields)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    theirs = model.state_dict()
    assert back.state_dict().keys() == theirs.keys()
    for name, tensor in back.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), theirs[name].numpy(), atol=1e-6, err_msg=name)
    assert described(back.config.to_dict()) == described(model.config.to_dict())


def described(config: dict[str, Any]) -> dict[str, Any]:
    """Selects the entries of a config, and of its towers' configs, that describe the model."""
    told = ("_name_or_path", "transformers_version", "dtype", "architectures", "_attn_implementation")
    return {k: described(v) if isinstance(v, dict) else v for k, v in config.items() if k not in told}


def looped(loaded: pretrained.Pretrained) -> Any:
    return unstack_blocks(loaded.variables["params"])


def pixels(images: np.ndarray) -> torch.Tensor:
    """Converts [B, H, W, C] to PyTorch's [B, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def stacked(tensors: tuple[torch.Tensor, ...]) -> np.ndarray:
    return np.stack([array(tensor) for tensor in tensors])


def close(ours: Any, theirs: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=1e-4, err_msg=what)


def close_trees(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Both flattened by path."""
    assert set(ours) == set(theirs)
    for path, leaf in ours.items():
        close(leaf, theirs[path], path)
