"""Peers of benchmarks: transformers' ViT, ViTMAE and LLaVA with fused attention (SDPA); PyTorch's DataLoader."""

import importlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitvlm.core.config import ConfigError
from vitvlm.data.operations.colour import STATISTICS
from vitvlm.data.sources.prepared import EMOJI


def require(threads: int, packages: tuple[str, ...] = ("torch", "transformers")) -> None:
    """Loads the packages and gives PyTorch as many threads as JAX has.

    Raises ConfigError if one of them is not installed.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(
                f'the peers: {package} is not installed: pip install "vitvlm[test]" '
                "(scripts/benchmark.py times ours alone with --nopeers)"
            ) from None
    importlib.import_module("torch").set_num_threads(threads)


def make_step(
    family: str, sizes: Mapping[str, int], image: np.ndarray, label: np.ndarray, classes: int
) -> Callable[[], None]:
    """One call is one forward and backward pass of the peer, float32, in training mode.

    Args:
      family: "vit" (cross-entropy) or "mae" (norm_pix loss).
      sizes: width, depth, heads, mlp_width and patch_size.
      image [B, H, H, 3], label [B]; classes: S, the width of ViT's head.
    """
    import torch
    import transformers

    fields = {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp_width"],
        "patch_size": sizes["patch_size"],
        "image_size": image.shape[1],
        "attn_implementation": "sdpa",
    }
    inputs = {"pixel_values": torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))}
    if family == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**fields, num_labels=classes))
        inputs["labels"] = torch.from_numpy(label).long()
    else:
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**fields, norm_pix_loss=True))
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()

    return step


def make_llava(sizes: Any) -> Any:
    """Returns a LlavaForConditionalGeneration of random weights and the sizes of `image_prefix.Sizes`, in float32."""
    import torch
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=sizes.image_width,
        num_hidden_layers=sizes.image_depth,
        num_attention_heads=sizes.image_heads,
        intermediate_size=4 * sizes.image_width,
        patch_size=sizes.patch,
        image_size=sizes.side,
    )
    text = transformers.LlamaConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        intermediate_size=sizes.mlp_width,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=sizes.vocabulary - 1,
        image_seq_length=sizes.image_tokens,
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )
    return transformers.LlavaForConditionalGeneration(config).float()


def pixel_values(images: np.ndarray) -> Any:
    """Images [B, 1, H, W, 3] as PyTorch's [B, 3, H, W]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images[:, 0].transpose(0, 3, 1, 2)))


def make_llava_step(
    model: Any, images: np.ndarray, places: np.ndarray, prefix: int, learning_rate: float, weight_decay: float
) -> Callable[[], float]:
    """One call is one step of training, with PyTorch's fused AdamW; returns the loss. See `image_prefix.our_step`."""
    import torch

    tokens = torch.from_numpy(places).long()
    labels = torch.where(torch.arange(tokens.shape[1]) < prefix, -100, tokens)
    inputs = {"pixel_values": pixel_values(images), "attention_mask": torch.ones_like(tokens)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    model.train()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=labels, **inputs).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def generate(model: Any, prompts: Sequence[Sequence[int]], count: int, **inputs: Any) -> list[list[int]]:
    """Writes the likeliest tokens after prompts, `count` whatever they are, and returns them.

    Args:
      model: of transformers. inputs: what else it reads, such as pixel_values.
    """
    import torch

    with torch.inference_mode():
        tokens = torch.tensor(prompts)
        lengths = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        ends = {"eos_token_id": -1, "pad_token_id": 0}
        written = model.generate(tokens, attention_mask=torch.ones_like(tokens), **lengths, **ends, **inputs)
    return written[:, tokens.shape[1] :].tolist()


def photograph_batches(folder: Path, batch_size: int, size: int, length: int) -> Iterator[Any]:
    """Endless shuffled (images float32 [B, 3, size, size], ids int64 [B, length]) of a PyTorch DataLoader.

    The images are folder/files/*.jpg and the captions folder/captions.json, in the order of the files' names. The work
    is that of torchvision: Pillow decodes, crops, resizes (bilinear) and flips, PyTorch normalises.
    """
    import torch
    from tokenizers import Tokenizer

    files = sorted((folder / "files").glob("*.jpg"))
    captions = json.loads((folder / "captions.json").read_text())
    tokenizer = Tokenizer.from_file(str(EMOJI / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS["imagenet"])

    class Photographs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            with files[index].open("rb") as file:
                image = Image.open(file).convert("RGB")
            image = image.crop(_window(*image.size)).resize((size, size), Image.Resampling.BILINEAR)
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
            return pixels.sub_(mean).div_(std), torch.tensor(tokenizer.encode(captions[index]).ids)

    loader = torch.utils.data.DataLoader(Photographs(), batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def _window(W: int, H: int) -> tuple[int, int, int, int]:
    """Draws (left, top, right, bottom) of torchvision's RandomResizedCrop, for images within its ratios."""
    while True:
        area, ratio = H * W * random.uniform(0.08, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= W and 0 < height <= H:
            left, top = random.randint(0, W - width), random.randint(0, H - height)
            return left, top, left + width, top + height
