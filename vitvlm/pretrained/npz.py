"""Checkpoints of big_vision and vision_transformer: one .npz, or a subtree of it, `file.npz:img`.

They hold no config: sizes, the pooling and the head follow from names and shapes, pixels are in [-1, 1].
"""

from pathlib import Path
from typing import Any

from vitvlm.nn.patches import Pair
from vitvlm.pretrained import big_vision
from vitvlm.pretrained.entries import WeightsError, blamed
from vitvlm.pretrained.families import assemble, image_inputs, text_inputs
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.npz_files import open_npz, unstacked


def open(path: Path, subtree: str = "", image_size: int | Pair | None = None, **fields: Any) -> Pretrained:
    """A ViT, a text tower, or both (SigLIP, LiT) from a .npz file.

    The file does not say which tokenizer its texts went through: `texts` is None.

    Args:
      subtree: of the file's names: "img" or "txt" of two towers; "params/" before it is understood.
      image_size: that the positions were made for, (height, width) in pixels; needed if their grid is not square.

    Raises WeightsError for a file that is damaged or of no known layout.
    """
    with blamed(path):
        tensors = unstacked(open_npz(path))
    for prefix in ("params/", f"{subtree}/" if subtree else ""):
        if any(name.startswith(prefix) for name in tensors):
            tensors = tensors.under(prefix)
    source = {} if image_size is None else {"image_size": image_size}
    shapes = tensors.shapes()
    with blamed(path):
        if "img/embedding/kernel" in shapes and "txt/Embed_0/embedding" in shapes:
            family, vision, texts = big_vision.TOWERS, tensors.under("img/"), shapes["txt/pos_embedding"]
        elif "embedding/kernel" in shapes:
            family, vision, texts = big_vision.VIT, tensors, None
        elif "Embed_0/embedding" in shapes:
            family, vision, texts = big_vision.TEXT, None, shapes["pos_embedding"]
        else:
            found = ", ".join(sorted({name.split("/")[0] for name in tensors})[:10])
            raise WeightsError(f"{path}: no ViT of big_vision: no embedding/kernel; its top names are: {found}")
        inputs, preprocessing = (), None
        if vision is not None:
            size, channels = big_vision.image_size(source, vision), vision.shapes()["embedding/kernel"][2]
            inputs, preprocessing = image_inputs(size, channels), f"decode({channels})|resize({size})|normalize('half')"
        if texts is not None:
            inputs += text_inputs(texts[1])
        section, model, variables = assemble(family, source, tensors, inputs, fields)
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=preprocessing,
        texts=None,
        source={"path": str(path), "format": "npz", "model": section, "config": source},
    )
