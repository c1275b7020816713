"""Small vision-language models of `transformers` that put image tokens among those of the text, and inputs of theirs.

Two texts each, the second with padding behind it, of images of odd sizes.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import torch
import transformers
from huggingface import pixels

from vitvlm.data import operations
from vitvlm.data.operations import tiling
from vitvlm.nn.patches import Patches

VOCAB, IMAGE = 30, 29
SIZES = {"vocab_size": VOCAB, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = SIZES | {"num_key_value_heads": 2, "intermediate_size": 20, "rms_norm_eps": 3e-4, "max_position_embeddings": 96}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
VISION = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
VISION |= {"layer_norm_eps": 3e-4}
RNG = np.random.default_rng(7)


@dataclasses.dataclass
class Case:
    """A model and its inputs.

    Fields:
      config: of theirs; tokens, mask [B, L]; theirs, ours: what else the models are called with.
      prompt: places of the first text that are its prompt, for what is written behind it.
      images: how many of theirs along the first axis are the first text's.
    """

    config: Any
    tokens: np.ndarray
    mask: np.ndarray
    theirs: dict[str, Any]
    ours: dict[str, Any]
    prompt: int
    images: int = 1

    def first(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns what theirs and ours are called with for the first text's prompt alone."""
        L, P = self.tokens.shape[1], self.prompt
        theirs = {name: value for name, value in self.theirs.items() if name != "input_ids"}
        counts = {"image_grid_thw": 2, "video_grid_thw": 1}  # of the first text
        for name, count in counts.items():
            if name in theirs:
                patches = "pixel_values" if name == "image_grid_thw" else "pixel_values_videos"
                theirs[name] = theirs[name][:count]
                theirs[patches] = theirs[patches][: int(theirs[name].prod(-1).sum())]
        flat = {"pixel_values_videos", *counts, *(["pixel_values"] if "image_grid_thw" in theirs else [])}
        theirs = {name: value if name in flat else value[: self.images] for name, value in theirs.items()}
        theirs = {name: value[:, :P] if value.shape[1:] == (L,) else value for name, value in theirs.items()}
        ours = jax.tree.map(lambda leaf: leaf[:1, :P] if leaf.shape[1:] == (L,) else leaf[:1], self.ours)
        theirs["input_ids"] = torch.tensor(self.tokens[:1, :P])
        if "pixel_values_videos" in theirs:
            theirs["input_ids"] = self.theirs["input_ids"][:1, :P]
        return theirs, ours

    @property
    def labels(self) -> np.ndarray:
        """The ids to learn: of real text behind the images."""
        text = self.mask & (self.tokens != IMAGE) & (np.cumsum(self.tokens == IMAGE, axis=1) > 0)
        return np.where(text, self.tokens, -100)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def texts(counts, before=1, behind=7):
    """Tokens and mask of texts with so many image tokens each, text before and behind them; padding where shorter."""
    lists = [[*RNG.integers(2, 20, before), *[IMAGE] * n, *RNG.integers(2, 20, behind)] for n in counts]
    lists[1] = lists[1][:-2]
    L = max(map(len, lists))
    tokens = np.array([[*each, *[0] * (L - len(each))] for each in lists])
    return tokens, np.array([np.arange(L) < len(each) for each in lists])


def paligemma(kind="gemma", **fields):
    """Every text begins with the image; its prompt is read both ways."""
    language = {"model_type": kind, **TEXT, **IDS, "head_dim": 6, **fields}
    vision = {"model_type": "siglip_vision_model", **VISION, "image_size": 9, "patch_size": 3, "vision_use_head": False}
    config = transformers.PaliGemmaConfig(
        text_config=language, vision_config=vision, image_token_index=IMAGE, projection_dim=12, hidden_size=12
    )
    images = normal(2, 1, 9, 9, 3)
    tokens, mask = texts((9, 9), before=0)
    types = (np.arange(tokens.shape[1]) >= 9 + 3).astype(int) * np.ones_like(tokens)
    return Case(
        config,
        tokens,
        mask,
        {"pixel_values": pixels(images[:, 0]), "token_type_ids": torch.tensor(types)},
        {"images": images, "prefix_mask": (types == 0) & mask},
        9 + 3,
    )


def llava_next(**fields):
    """Images of two shapes, a grid of tiles each; the second text has one tile fewer."""
    grids = [[12, 8], [4, 12]]
    vision = {"model_type": "clip_vision_model", **VISION, "image_size": 4, "patch_size": 2, "hidden_act": "gelu"}
    config = transformers.LlavaNextConfig(
        text_config={"model_type": "llama", "head_dim": 6, **TEXT, **IDS},
        vision_config=vision,
        image_token_index=IMAGE,
        image_grid_pinpoints=grids,
        projector_hidden_act="relu",
        **fields,
    )
    shapes = [(30, 21), (7, 29)]
    counts = [7, 4]
    images = normal(2, 7, 4, 4, 3)
    images[1, 4:] = 0
    rows = [tiling.unpadded_rows(shape, size, 2) for shape, size in zip(shapes, ((3, 2), (1, 3)))]
    tokens, mask = texts([len(each) for each in rows])
    index = np.full(tokens.shape, -1)
    index[tokens == IMAGE] = np.concatenate([np.where(each < 0, 7 * 4, each) for each in rows])
    theirs = torch.stack([pixels(each) for each in images])
    return Case(
        config,
        tokens,
        mask,
        {"pixel_values": theirs, "image_sizes": torch.tensor(shapes)},
        {"images": images, "image_index": index, "image_mask": np.arange(7) < np.array(counts)[:, None]},
        int((tokens[0] == IMAGE).sum()) + 3,
    )


def llava(kind="clip_vision_model", images=2, text="llama", **fields):
    """Two images to each text, of one tile each; the second has text of another length."""
    vision = {"model_type": kind, **VISION, "image_size": 4, "patch_size": 2}
    vision |= {"hidden_act": "quick_gelu"} if kind == "clip_vision_model" else {"vision_use_head": False}
    each = 4 + (fields.get("vision_feature_select_strategy") == "full" and kind == "clip_vision_model")
    config = transformers.LlavaConfig(
        text_config={"model_type": text, "head_dim": 6, **TEXT, **IDS},
        vision_config=vision,
        image_token_index=IMAGE,
        image_seq_length=each,
        **fields,
    )
    pictures = normal(2, images, 4, 4, 3)
    tokens, mask = texts((each * images,) * 2)
    theirs = pixels(pictures.reshape(-1, 4, 4, 3))
    return Case(config, tokens, mask, {"pixel_values": theirs}, {"images": pictures}, each * images + 3, images)


def idefics3(config_class=transformers.Idefics3Config, side=12, **fields):
    """Texts of three tiles and of two."""
    config = config_class(
        text_config={"model_type": "llama", "head_dim": 6, **TEXT, **IDS},
        vision_config=VISION | {"image_size": 12, "patch_size": 2},
        image_token_id=IMAGE,
        scale_factor=3,
        **fields,
    )
    each = (side // 6) ** 2
    images = normal(2, 3, side, side, 3)
    images[1, 2] = 0  # which theirs take for none
    tokens, mask = texts((3 * each, 2 * each))
    theirs = torch.stack([pixels(each) for each in images])
    there = np.array([[1, 1, 1], [1, 1, 0]])
    return Case(config, tokens, mask, {"pixel_values": theirs}, {"images": images, "image_mask": there}, 3 * each + 3)


def qwen2_vl(**fields):
    """A text with images of two shapes, another with one; a video is the last of the second's in `qwen2_vl_video`."""
    config = _qwen2_vl(**fields)
    sizes = [[(6, 12), (12, 6)], [(6, 6), (12, 6)]]
    found = [_cut([normal(*size, 3) for size in each]) for each in sizes]
    counts = [[int(image.sum()) // 4 for image in mask] for _, mask, _, _ in found]
    lists = [[2, 3], [2, 3]]
    for text, each in zip(lists, counts):
        for count in each:
            text += [28, *[IMAGE] * count, 27, 5]
    lists[0] += [*RNG.integers(2, 20, 6)]
    lists[1] += [*RNG.integers(2, 20, 4)]
    L = max(map(len, lists))
    tokens = np.array([[*each, *[0] * (L - len(each))] for each in lists])
    mask = np.array([np.arange(L) < len(each) for each in lists])
    patches, patch_mask, grids, _ = (np.stack(each) for each in zip(*found))
    given = {
        "pixel_values": torch.cat([_flat(*each) for each in zip(patches, patch_mask)]),
        "image_grid_thw": torch.tensor(np.array([(1, *grid) for each in grids for grid in each])),
        "mm_token_type_ids": torch.tensor((tokens == IMAGE).astype(int)),
    }
    pixels_ = patches.reshape(*patches.shape[:3], -1)
    ours = {"images": Patches(pixels_, patch_mask, grids)}
    return Case(config, tokens, mask, given, ours, len(lists[0]) - 4)


def qwen2_vl_video():
    """Two texts with a video of five frames each, three slices of pairs."""
    config = _qwen2_vl()
    found = [_cut([normal(6, 12, 3) for _ in range(5)], video=True) for _ in range(2)]
    patches, patch_mask, grids, times = (np.stack(each) for each in zip(*found))
    tokens, mask = texts((6, 6))
    flat = torch.cat([_flat(*each) for each in zip(patches, patch_mask)])
    video = np.where(tokens == IMAGE, config.video_token_id, tokens)
    given = {
        "input_ids": torch.tensor(video),
        "pixel_values_videos": flat,
        "video_grid_thw": torch.tensor([[3, 2, 4]] * 2),
        "mm_token_type_ids": torch.tensor(2 * (tokens == IMAGE)),
    }
    index = np.full(tokens.shape, -1)
    index[tokens == IMAGE] = np.tile([0, 1, 3, 4, 6, 7], 2)
    pixels_ = patches.reshape(*patches.shape[:3], -1)
    ours = {"images": Patches(pixels_, patch_mask, grids), "image_index": index, "image_times": times}
    return Case(config, tokens, mask, given, ours, 6 + 3)


def _qwen2_vl(**fields):
    rope = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}
    text = TEXT | IDS | {"hidden_size": 32, "rope_parameters": rope} | fields
    vision = {"depth": 2, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2, "patch_size": 3, "hidden_size": 32}
    tokens = {"image_token_id": IMAGE, "video_token_id": 26, "vision_start_token_id": 28, "vision_end_token_id": 27}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)


def _cut(images, video=False):
    """Patches, their mask, grids and times, as `merge_patches` makes them; room for twelve."""
    field, frames = ("video", 2) if video else ("images", 1)
    found = operations.parse(f"merge_patches(3, 12, frames={frames}, field='{field}')")({field: images, "id": "0"})
    names = ("images", "images_patch_mask", "images_patch_grid", "image_times")
    return [np.stack(found[name]) for name in names]


def _flat(patches, mask):
    """Patches of the images that are there as theirs come, [n, C * T * P * P]."""
    own = patches[mask.astype(bool)]
    own = np.tile(own, (1, 1, 6 // own.shape[-1]))
    return torch.from_numpy(own.reshape(len(own), 9, 2, 3).transpose(0, 3, 2, 1).reshape(len(own), -1).copy())


CASES = {
    "PaliGemma": lambda: paligemma(hidden_act="gelu_pytorch_tanh"),
    "PaliGemma 2": lambda: paligemma(
        "gemma2", query_pre_attn_scalar=5, hidden_activation="gelu_pytorch_tanh", sliding_window=64,
        attn_logit_softcapping=2.0, final_logit_softcapping=1.5,
    ),
    "LLaVA 1.5": llava,
    "LLaVA, two layers and CLS": lambda: llava(
        vision_feature_layer=[1, -1], vision_feature_select_strategy="full", projector_hidden_act="relu",
        multimodal_projector_bias=False, images=1,
    ),
    "LLaVA, SigLIP and Qwen2": lambda: llava(
        "siglip_vision_model", text="qwen2", vision_feature_layer=-1, vision_feature_select_strategy="full", images=1,
        tie_word_embeddings=True,
    ),
    "LLaVA-NeXT": llava_next,
    "LLaVA-NeXT, two layers": lambda: llava_next(vision_feature_layer=[-3, -1], multimodal_projector_bias=False),
    "Idefics3": lambda: idefics3(tie_word_embeddings=True),
    "Idefics3, images of another size": lambda: idefics3(side=18),
    "SmolVLM": lambda: idefics3(transformers.SmolVLMConfig),
    "Qwen2-VL": qwen2_vl,
    "Qwen2-VL, a video": qwen2_vl_video,
}  # fmt: skip
