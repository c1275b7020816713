"""Exporters under test: of each a small model that it can write, and other values of that model's fields."""

import dataclasses

from vitvlm.nn.rope import Rope, Scaling
from vitvlm.pretrained import (
    align,
    bert,
    blip,
    clip,
    deit,
    dinov2,
    efficientnet,
    gemma,
    gpt2,
    llama,
    mae,
    open_clip_models,
    opt,
    phi,
    resnet,
    siglip,
    siglip2,
    swin,
    t5,
    timm_resnet,
    timm_swin,
    timm_vit,
    vit,
)
from vitvlm.pretrained.families import Family

LENGTH = 6
TOWER = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 16}
VIT = TOWER | {"patch_size": 4, "image_size": 8}
TEXT = TOWER | {"vocab_size": 9, "length": LENGTH}
BERT = TEXT | {"pool": "first", "pooler": True}
BLIP = {"image": {"name": "vit", **VIT}, "text": TEXT}
EFFICIENT = {
    "widths": (8, 8), "depths": (1, 1), "kernels": (3, 3), "strides": (1, 2), "expansions": (1, 2),
}  # fmt: skip
RESNET = {"widths": (16, 32), "depths": (1, 1)}
SWIN = {"width": 8, "depths": (1, 1), "heads": (2, 2), "window": 2, "patch_size": 2, "image_size": 8}
CLIP_IMAGE = VIT | {"pre_norm": True, "norm_pooled": True, "patch_bias": False}
SIGLIP_IMAGE = VIT | {"pool": "map"}
SIGLIP_TEXT = TEXT | {"causal": False, "pool": "last", "projection": 8}
OPEN_CLIP_IMAGE = CLIP_IMAGE | {"norm_eps": 1e-5, "cls_token": True}
OPEN_CLIP_TEXT = TEXT | {"norm_eps": 1e-5}
SIGLIP = {"image_projection": "none", "text_projection": "none", "scale_init": 10.0, "bias_init": -10.0}
NAFLEX = TOWER | {"patch_size": 4, "position_grid": (2, 2)}


def towers(image, text, embed_dim=8, **fields):
    return {"image": image, "text": text, "embed_dim": embed_dim, **fields}


# The towers of a SigLIP are of one width, which is that of the shared space too.
SIGLIP_WIDTHS = {
    "image.width": {"embed_dim": 12, "text.projection": 12},
    "embed_dim": {"image.width": 16, "text.projection": 16},
}


@dataclasses.dataclass(frozen=True)
class Exporter:
    """A family under test, a model that it can write, and what has to change with a field for another to be legal."""

    format: str
    family: Family
    model: str
    fields: dict
    companions: dict = dataclasses.field(default_factory=dict)


# Decoders say how many heads of keys there are, and how wide they are.
DECODER = TEXT | {"kv_heads": 1, "head_dim": 4}
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
LEARNED = BIASED | {"positions": "learned", "norm": "layer", "mlp": "plain", "activation": "relu"}
GEMMA = DECODER | {"norm": "rms_zero_centred", "scale_embed": True, "activation": "gelu_tanh"}
GEMMA2 = GEMMA | {"norms": "sandwich", "query_scalar": 4.0}
ONE_BIAS = {"qkv_bias": {"out_bias": True}, "out_bias": {"qkv_bias": True}}
WINDOWS = {"pattern": {"local": 3, "depth": 3}, "local": {"pattern": ("local",)}}

HEADED = {"num_classes": {"head_input": "mean"}}
EXPORTERS = {
    "ViT": Exporter("hf", vit.CLASSIFIER, "vit", VIT),
    "DeiT": Exporter("hf", deit.DEIT, "vit", VIT | {"distillation": True, "num_classes": 2}),
    "DINOv2": Exporter(
        "hf",
        dinov2.DINOV2,
        "vit",
        VIT | {"layer_scale": 1.0},
        {"width": {"mlp_width": 24}, "num_classes": {"pool": "cls_and_gap"}, "pool": {"num_classes": 2},
         "registers": {"position_antialias": True},
         "position_antialias": {"registers": 1}},
    ),
    "MAE": Exporter(
        "hf",
        mae.FAMILIES["ViTMAEForPreTraining"],
        "mae",
        VIT | {"positions": "learned", "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2,
               "decoder_mlp_width": 32},
    ),
    "Swin": Exporter(
        "hf", swin.CLASSIFIER, "swin", SWIN,
        {"level_norms": {"always_partition": True}, "always_partition": {"level_norms": (1,)}},
    ),
    "ResNet": Exporter("hf", resnet.CLASSIFIER, "resnet", RESNET, {"activation": {"inner_activation": "relu"}}),
    "EfficientNet": Exporter("hf", efficientnet.CLASSIFIER, "efficientnet", EFFICIENT),
    "BERT": Exporter("hf", bert.ENCODER, "bert", BERT | {"pool": "cls"}, {"pooler": {"pool": "first"}, "pool": {}}),
    "BERT as a decoder": Exporter("hf", bert.DECODER_LM, "bert_decoder", TEXT, {"width": {"context_width": 12}}),
    "T5": Exporter(
        "hf", t5.T5_LM, "t5", TOWER | {"vocab_size": 9, "head_dim": 4},
        {"attention_dropout": {"dropout": 0.25}, "dropout": {"attention_dropout": 0.25}},
    ),
    "LLaMA": Exporter("hf", llama.LLAMA, "decoder", DECODER, ONE_BIAS),
    "Mistral": Exporter("hf", llama.MISTRAL, "decoder", DECODER, WINDOWS),
    "Qwen 2": Exporter("hf", llama.QWEN2, "decoder", DECODER | {"qkv_bias": True}, WINDOWS),
    "Qwen 3": Exporter("hf", llama.QWEN3, "decoder", DECODER | {"qk_norm": True}, WINDOWS | ONE_BIAS),
    "Gemma": Exporter("hf", gemma.GEMMA, "decoder", GEMMA, ONE_BIAS),
    "Gemma 2": Exporter("hf", gemma.GEMMA2, "decoder", GEMMA2, WINDOWS | ONE_BIAS),
    "Gemma 3": Exporter(
        "hf", gemma.GEMMA3, "decoder", GEMMA2 | {"qk_norm": True, "local_rope": {"base": 50.0}}, WINDOWS | ONE_BIAS
    ),
    "Phi": Exporter(
        "hf", phi.FAMILY, "decoder",
        TEXT | LEARNED | {"kv_heads": 1, "positions": "rotary", "parallel": True, "head_bias": True},
        {"heads": {"width": 16}},
    ),
    "OPT": Exporter(
        "hf", opt.FAMILY, "decoder",
        TEXT | LEARNED | {"position_offset": 2, "norm_eps": 1e-5},
        {"norms": {"final_norm": False}, **{name: dict.fromkeys(BIASED, False) for name in BIASED}},
    ),
    "GPT-2": Exporter("hf", gpt2.FAMILY, "decoder", TEXT | LEARNED),
    "CLIP": Exporter(
        "hf",
        clip.FAMILIES["CLIPModel"],
        "two_towers",
        towers({"name": "vit", **CLIP_IMAGE}, {"name": "text", **TEXT}),
    ),
    "CLIP's images": Exporter("hf", clip.VISION, "vit", CLIP_IMAGE, HEADED | {"head_input": {"num_classes": 2}}),
    "CLIP's texts": Exporter("hf", clip.TEXT, "text", TEXT, {
        "projection": {"projection_bias": False}, "projection_bias": {"projection": 6}}),
    "SigLIP": Exporter(
        "hf",
        siglip.FAMILIES["SiglipModel"],
        "two_towers",
        towers({"name": "vit", **SIGLIP_IMAGE}, {"name": "text", **SIGLIP_TEXT}, **SIGLIP),
        SIGLIP_WIDTHS,
    ),
    "SigLIP's images": Exporter("hf", siglip.VISION, "vit", SIGLIP_IMAGE, HEADED | {"head_input": {"num_classes": 2}}),
    "SigLIP's texts": Exporter("hf", siglip.TEXT, "text", SIGLIP_TEXT),
    "SigLIP 2": Exporter(
        "hf",
        siglip2.FAMILIES["Siglip2Model"],
        "two_towers",
        towers({"name": "naflex", **NAFLEX}, {"name": "text", **SIGLIP_TEXT}, **SIGLIP),
        SIGLIP_WIDTHS,
    ),
    "SigLIP 2's images": Exporter(
        "hf", siglip2.VISION, "naflex", NAFLEX, HEADED | {"head_input": {"num_classes": 2}}
    ),
    "ALIGN": Exporter(
        "hf",
        align.FAMILIES["AlignModel"],
        "two_towers",
        towers(
            {"name": "efficientnet", **EFFICIENT, "top": False},
            {"name": "bert", **BERT},
            image_projection="none",
            text_projection="affine",
        ),
        {"image.widths": {"embed_dim": 16}, "image.width_factor": {"embed_dim": 16},
         "embed_dim": {"image.widths": (8, 16)}},
    ),
    "BLIP's captioner": Exporter("hf", blip.FAMILIES["BlipForConditionalGeneration"], "blip_captioner", BLIP),
    "BLIP's answers": Exporter(
        "hf", blip.FAMILIES["BlipForQuestionAnswering"], "blip_vqa", BLIP,
        {"image.width": {"text.width": 12}, "text.width": {"image.width": 12}},
    ),
    "BLIP's retrieval": Exporter(
        "hf", blip.FAMILIES["BlipForImageTextRetrieval"], "blip_retrieval", BLIP | {"embed_dim": 8}
    ),
    "ALIGN's images": Exporter(
        "hf", align.FAMILIES["AlignVisionModel"], "efficientnet", EFFICIENT | {"top": False}
    ),
    "timm's ViT": Exporter(
        "timm", timm_vit.VIT, "vit", VIT | {"num_classes": 2}, {"pool": {"norm_pooled": True}, "cls_token": {
            "pool": "gap", "norm_pooled": True}, "norm_pooled": {"pool": "gap"}}),
    "timm's Swin": Exporter("timm", timm_swin.FAMILIES["swin"], "swin", SWIN),
    "timm's ResNet": Exporter("timm", timm_resnet.FAMILIES["resnet"], "resnet", RESNET),
    "open_clip's CLIP": Exporter(
        "open_clip",
        open_clip_models.FAMILIES["CLIP"],
        "two_towers",
        towers({"name": "vit", **OPEN_CLIP_IMAGE}, {"name": "text", **OPEN_CLIP_TEXT}),
        {"image.activation": {"text.activation": "quick_gelu"}, "text.activation": {"image.activation": "quick_gelu"}},
    ),
    "open_clip's CustomTextCLIP": Exporter(
        "open_clip",
        open_clip_models.FAMILIES["CustomTextCLIP"],
        "two_towers",
        towers({"name": "vit", **OPEN_CLIP_IMAGE}, {"name": "text", **OPEN_CLIP_TEXT}),
        {"image.activation": {"text.activation": "quick_gelu"}, "text.activation": {"image.activation": "quick_gelu"},
         "text.pool": {"text.norm_pooled": True, "text.late_mask": True},
         "text.norm_pooled": {"text.pool": "cls", "text.late_mask": True},
         "text.late_mask": {"text.pool": "cls", "text.norm_pooled": True}},
    ),
    "CoCa": Exporter(
        "open_clip",
        open_clip_models.FAMILIES["CoCa"],
        "coca",
        towers(
            {"name": "vit", **OPEN_CLIP_IMAGE, "norm_pooled": False},
            {"name": "text", **OPEN_CLIP_TEXT, "pool": "cls", "norm_pooled": True, "late_mask": True},
            queries=3, pool_heads=2, decoder_depth=1, decoder_heads=2, pad_id=0,
        ),
        {"image.activation": {"text.activation": "quick_gelu"}, "text.activation": {"image.activation": "quick_gelu"},
         "text.width": {"embed_dim": 12, "decoder_heads": 4, "pool_heads": 4},
         "image.norm_pooled": {"pooling": "none"}, "image.pool": {"pooling": "none"}, "queries": {}, "pool_heads": {},
         "embed_dim": {"text.width": 16, "decoder_heads": 4, "pool_heads": 4}},
    ),
}  # fmt: skip

# Other values of a field than the models above have. Where a field may have any, the first is what is tried.
OTHERS = {
    "width": [12], "depth": [2], "heads": [4, (4, 2)],
    "mlp_width": [24], "patch_size": [2, (2, 4)], "image_size": [12, (8, 12)],
    "num_classes": [3], "pool": ["gap", "map", "cls_and_gap", "cls", "first", "mean", "last", "max"],
    "cls_token": [False, True], "distillation": [True, False], "distillation_head": [False],
    "positions": ["sincos", "learned", "none"], "special_positions": [False], "registers": [2],
    "pre_norm": [False, True],
    "norm_pooled": [False, True], "patch_bias": [False, True], "crop": [True], "representation_size": [6],
    "projection": [6, None],
    "head_input": ["mean"], "qkv_bias": [False, True], "mlp": ["swiglu", "gated"],
    "activation": ["quick_gelu", "gelu_tanh", "relu", "silu", "gelu"], "norm_eps": [1e-2], "layer_scale": [0.5, None],
    "drop_path": [0.25], "dropout": [0.25], "attention_dropout": [0.25], "position_antialias": [True],
    "vocab_size": [11], "length": [7], "causal": [False, True], "eot_id": [5], "late_mask": [True, False],
    "projection_bias": [False], "segments": [3], "pooler": [False], "mlm_head": [True],
    "embed_dim": [16], "image_projection": ["mlp", "linear", "none"], "text_projection": ["none", "linear", "affine"],
    "scale_init": [5.0], "bias_init": [-3.0, None], "pooling": ["none", "parallel", "cascade"], "queries": [5],
    "pool_heads": [4], "decoder_depth": [2], "decoder_heads": [4], "decoder_mlp_width": [24, 32], "pad_id": [1, None],
    "mask_ratio": [0.5], "norm_pix": [False], "decoder_width": [12], "depths": [(2, 1)], "window": [4],
    "mlp_ratio": [2.0], "level_norms": [(1,)], "always_partition": [True], "embed_norm_eps": [1e-3],
    "widths": [(24, 16)], "layer": ["basic"], "stem_width": [32], "inner_activation": ["relu", "silu"],
    "downsample_in_first_stage": [True], "downsample_in_bottleneck": [True], "width_factor": [2.0],
    "depth_factor": [2.0], "width_divisor": [4], "kernels": [(5, 3)], "strides": [(2, 1)], "expansions": [(2, 1)],
    "squeeze_ratio": [0.5], "symmetric_padding": [(1,)], "norm_momentum": [0.5], "top": [True, False],
    "position_grid": [(3, 3), (2, 3)],
    "head_dim": [6], "buckets": [8], "max_distance": [10], "tied": [False, True], "scale_logits": [False],
    "start_id": [3],
    "kv_heads": [2], "out_bias": [True, False], "mlp_bias": [True, False], "qk_norm": [True, False],
    "pattern": [("local",), ("local", "local", "global")], "local": [3], "rope": [
        Rope(base=50.0), Rope(channels=2), Rope(pairs="interleaved"), Rope(scaling=Scaling("ntk", 2.0)),
        Rope(scaling=Scaling("dynamic", 2.0, 6)), Rope(scaling=Scaling("yarn", 2.0, 3, high=16.0, magnitude=1.5)),
        Rope(scaling=Scaling("llama3", 2.0, 3)), Rope(scaling=Scaling("linear", 2.0)),
    ],
    "local_rope": [Rope(base=20.0), Rope(base=20.0, scaling=Scaling("linear", 2.0))], "norms": ["post", "output"],
    "query_scalar": [1.0, 5.0], "soft_cap": [2.0], "logit_soft_cap": [3.0], "final_norm": [False],
    "embed_width": [6], "embed_dropout": [0.25], "norm": ["rms", "layer"], "parallel": [False], "head_bias": [False],
    "scale_embed": [False], "position_offset": [0],
    "context_width": [8, 12], "stop_id": [4], "encode_id": [5], "encodes": [True, False],
    "decodes": [True, False],
}  # fmt: skip

# Properties that say what a field comes to, where its None stands for one of the other values.
COMES_TO = {"cls_token": "has_cls", "pooler": "has_pooler", "decoder_depth": "decoder_layers"}

# Where training begins; and what is computed the same with two values, of which a file's reader takes one.
SAME_RESULT = {"scale_init", "bias_init", "crop", "special_positions", "inner_activation",
               "norm_pooled", "head_input", "decoder_mlp_width", "distillation_head", "projection_bias",
               "embed_dim"}  # fmt: skip
