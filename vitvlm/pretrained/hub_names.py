"""Names of `transformers` 5 in memory, `torch.save(model.state_dict())`, as those that it saves and the hub has."""

import re

import numpy as np

from vitvlm.pretrained.entries import Entry, Tensors

IN_MEMORY = re.compile(r"(.*\.)?attention\.q_proj\.weight")  # no file of the hub that we read has such
BLOCK = r"(?P<block>(?:.*\.)?(?:layer|layers|decoder_layers|blocks)\.\d+)"

# What is the same in all: the first pattern that fits a name is followed. Swin's queries lie under "self".
SWIN = [
    (rf"{BLOCK}\.attention\.{letter}_proj", rf"\g<block>.attention.self.{word}")
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value"))
] + [
    (
        rf"{BLOCK}\.attention\.relative_position_bias\.relative_position",
        r"\g<block>.attention.self.relative_position",
    )
]
OTHERS = [(pattern, new.replace(".self.", ".attention.")) for pattern, new in SWIN[:3]]
OUT = [(rf"{BLOCK}\.attention\.o_proj", r"\g<block>.attention.output.dense")]
DENSE_MLP = [
    (rf"{BLOCK}\.mlp\.fc1", r"\g<block>.intermediate.dense"),
    (rf"{BLOCK}\.mlp\.fc2", r"\g<block>.output.dense"),
]
DINOV2_MLP = [(rf"{BLOCK}\.mlp\.down_proj", r"\g<block>.mlp.weights_out")]


def saved(tensors: Tensors) -> Tensors:
    """The tensors under the names that are saved; the same tensors if they have these already."""
    if not any(IN_MEMORY.fullmatch(name) for name in tensors):
        return tensors
    if any(".relative_position_bias." in name for name in tensors):
        rules = SWIN + OUT + DENSE_MLP
    elif any(".layer_scale1." in name for name in tensors):
        rules = OTHERS + OUT + DINOV2_MLP
    else:
        rules = OTHERS + OUT + DENSE_MLP

    def rename(name: str) -> str:
        for pattern, new in rules:
            if (found := re.match(rf"{pattern}(?P<rest>.*)", name)) is not None:
                name = found.expand(new + r"\g<rest>")
                break
        return re.sub(r"^((?:vit|deit)\.)?layers\.", r"\1encoder.layer.", name)

    return _joined(tensors.renamed(rename))


def _joined(tensors: Tensors) -> Tensors:
    """SwiGLU's gate and its other half, which are one tensor where they are saved."""
    entries = dict(tensors.entries)
    for name in [name for name in entries if ".mlp.gate_proj." in name]:
        gate, up = entries.pop(name), entries.pop(name.replace("gate_proj", "up_proj"))
        shape = (gate.shape[0] + up.shape[0], *gate.shape[1:])
        entries[name.replace("gate_proj", "weights_in")] = Entry(
            shape, gate.dtype, lambda gate=gate, up=up: np.concatenate([gate.read(), up.read()])
        )
    return Tensors(entries, tensors.opaque)
