"""Small random-weight models of `transformers`, their weights and gradients under the names that they have on disk."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import PreTrainedModel

torch.set_num_threads(1)


def randomise(model: PreTrainedModel, seed: int = 0) -> None:
    """Moves every trainable parameter, biases and norms too, so that a wrong mapping of any shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.eval()


def saved(model: PreTrainedModel) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors and the config as `save_pretrained` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        return load_file(Path(folder) / "model.safetensors"), config


def saved_gradients(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Gradients under the tensors' names; what has none (fixed positions) keeps its value. Spoils it."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data = parameter.grad
    return saved(model)[0]


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def stacked(tensors: tuple[torch.Tensor, ...]) -> np.ndarray:
    return np.stack([array(tensor) for tensor in tensors])
