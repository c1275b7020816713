"""Every exporter and every field of its model: what it names round-trips, anything else is refused by name."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.models.bert import Bert
from vitvlm.models.naflex import NaFlex
from vitvlm.models.registry import module_fields
from vitvlm.models.text import TextTransformer
from vitvlm.nn.patches import Patches
from vitvlm.pretrained import (
    align,
    bert,
    clip,
    deit,
    dinov2,
    efficientnet,
    huggingface,
    mae,
    open_clip,
    open_clip_models,
    resnet,
    siglip,
    siglip2,
    swin,
    timm,
    timm_resnet,
    timm_swin,
    timm_vit,
    vit,
)
from vitvlm.pretrained.expressible import ANY, HOW, Expressible, anything
from vitvlm.pretrained.families import Family

LENGTH = 6
TOWER = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 16}
VIT = TOWER | {"patch_size": 4, "image_size": 8}
TEXT = TOWER | {"vocab_size": 9, "length": LENGTH}
BERT = TEXT | {"pool": "first", "pooler": True}
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
    "head_input": ["mean"], "qkv_bias": [False], "mlp": ["swiglu"],
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
}  # fmt: skip

# Properties that say what a field comes to, where its None stands for one of the other values.
COMES_TO = {"cls_token": "has_cls", "pooler": "has_pooler"}

# Where training begins; and what is computed the same with two values, of which a file's reader takes one.
SAME_RESULT = {"scale_init", "bias_init", "crop", "special_positions", "inner_activation",
               "norm_pooled", "head_input", "decoder_mlp_width", "distillation_head", "projection_bias",
               "embed_dim"}  # fmt: skip


def build(exporter, changes):
    """The exporter's model with changes, by their paths in it."""
    looped = {} if exporter.model in ("swin", "resnet", "efficientnet") else {"scan": False}
    model = models.build(exporter.model, **exporter.fields, **looped)
    for path, value in changes.items():
        model = changed(model, path.split("."), value)
    return model


def changed(model, names, value):
    name, *rest = names
    return model.clone(**{name: changed(getattr(model, name), rest, value) if rest else value})


def inputs_of(model):
    """Returns what a model is called with; each image and text alike."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, *_size(model), 3)).astype(np.float32)
    texts = (np.arange(LENGTH if not hasattr(_text(model), "length") else _text(model).length)[None] + 1) % 8
    if isinstance(model, TextTransformer | Bert):
        return (texts,)
    image = getattr(model, "image", model)
    if isinstance(image, NaFlex):
        p, q = (image.patch_size,) * 2 if isinstance(image.patch_size, int) else image.patch_size
        patches = rng.normal(size=(1, 4, p * q * 3)).astype(np.float32)
        images = Patches(jnp.asarray(patches), jnp.ones((1, 4), bool), jnp.full((1, 2), 2, jnp.int32))
    return (images, texts) if hasattr(model, "text") else (images,)


def _size(model):
    size = getattr(getattr(model, "vit", getattr(model, "image", model)), "image_size", 16)
    return (size, size) if isinstance(size, int) else tuple(size)


def _text(model):
    return getattr(model, "text", model)


def random_variables(model):
    rng = np.random.default_rng(1)
    rngs = {name: jax.random.key(0) for name in ("params", "mask")}
    shapes = jax.eval_shape(model.init, rngs, *inputs_of(model))
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32), dict(shapes))


def named(expressible, prefix=""):
    """Each named field by its path, and the values that it may have."""
    for name, values in expressible.fields.items():
        if isinstance(values, Expressible):
            yield from named(values, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values


def unnamed(expressible, model, prefix=""):
    """Each other field by its path, with a module in which it has another value than by default."""
    for name in module_fields(expressible.kind):
        values = expressible.fields.get(name)
        if isinstance(values, Expressible):
            for path, inner in unnamed(values, getattr(model, name), f"{prefix}{name}."):
                yield path, model.clone(**{name: inner})
        elif values is None and name not in HOW:
            default = getattr(model, name)
            yield f"{prefix}{name}", model.clone(**{name: flipped(default)})


def flipped(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another" if isinstance(value, str) else 1


def get(model, path):
    for name in path.split("."):
        model = getattr(model, name)
    return model


def round_trip(exporter, model, path, folder, monkeypatch):
    """Writes the model by this exporter alone, reads it, and compares fields, variables and, where fields differ that
    should make no difference, outputs."""
    for module in (huggingface, timm, open_clip):
        if module.__name__.endswith({"hf": "huggingface"}.get(exporter.format, exporter.format)):
            own = {n: each for n, each in module.FAMILIES.items() if each.expressible is exporter.family.expressible}
            monkeypatch.setattr(module, "FAMILIES", own)
    variables = random_variables(model)
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), folder, exporter.format)
    back = pretrained.open(folder)
    written, read = flatten(variables), flatten(back.variables)
    assert written.keys() == read.keys()
    for name, leaf in written.items():
        np.testing.assert_allclose(np.asarray(read[name]), leaf, rtol=1e-6, err_msg=f"{path}: {name}")
    other = {each for each in fields_of(model) if differs(comes_to(model, each), comes_to(back.model, each))}
    assert {each.rpartition(".")[2] for each in other} <= SAME_RESULT, (path, other)
    if {each.rpartition(".")[2] for each in other} - {"scale_init", "bias_init"}:
        variables = jax.tree.map(np.asarray, dict(back.variables))
        found, expected = (
            each.apply(variables, *inputs_of(model), rngs={"mask": jax.random.key(0)}) for each in (back.model, model)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def comes_to(model, path):
    *parts, name = path.split(".")
    return get(model, ".".join([*parts, COMES_TO.get(name, name)]))


def fields_of(model, prefix=""):
    for name in module_fields(type(model)):
        value = getattr(model, name)
        if hasattr(value, "apply") and hasattr(value, "scope"):
            yield from fields_of(value, f"{prefix}{name}.")
        elif name not in HOW:
            yield f"{prefix}{name}"


def differs(first, second):
    """Tells whether two values of a field differ: a number stands for a pair of equal ones."""
    if isinstance(first, tuple) and isinstance(second, int):
        return first != (second,) * len(first)
    if isinstance(second, tuple) and isinstance(first, int):
        return second != (first,) * len(second)
    if isinstance(first, float) and isinstance(second, float):
        return not np.isclose(first, second, rtol=1e-6)
    return first != second


def test_all_exporters_are_tested():
    every = {id(f.expressible) for m in (huggingface, timm, open_clip) for f in m.FAMILIES.values()}
    assert every == {id(each.family.expressible) for each in EXPORTERS.values()}


@pytest.mark.parametrize("exporter", EXPORTERS.values(), ids=EXPORTERS)
def test_fields_that_are_not_named_are_refused(exporter):
    model = build(exporter, {})
    exporter.family.expressible.check(model)
    paths = []
    for path, changed in unnamed(exporter.family.expressible, model):
        paths.append(path)
        value = get(changed, path)
        with pytest.raises(ConfigError) as refused:
            exporter.family.described(changed, {})
        assert f"{path} = {value!r}" in str(refused.value), path
    assert paths or exporter.model == "swin"  # all of Swin's are named


def changes(exporter, base, path):
    """Changes of one field, to each other value; what has to change with it changes too."""
    for value in OTHERS[path.rpartition(".")[2]]:
        now = get(base, path)
        strict = isinstance(now, tuple) or path.endswith("heads")  # others take a number or a pair
        if differs(value, now) and (isinstance(value, tuple) == isinstance(now, tuple) or not strict):
            yield {**exporter.companions.get(path, {}), path: value}


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS.values(), ids=EXPORTERS)
def test_fields_that_are_named_round_trip(exporter, tmp_path, monkeypatch):
    expressible, number = exporter.family.expressible, itertools.count()
    base = build(exporter, {})
    fields = dict(named(expressible))
    together = [path for path, values in fields.items() if values is ANY and path not in exporter.companions]
    if together:
        all_at_once = {path: value for each in together for path, value in next(changes(exporter, base, each)).items()}
        round_trip(exporter, build(exporter, all_at_once), together, tmp_path / "together", monkeypatch)
    for path, values in fields.items():
        if path in together:
            continue
        passed = refused = 0
        for change in changes(exporter, base, path):
            model = build(exporter, change)
            if problems := dict(expressible.problems(model)):
                assert values is not ANY, (path, problems)
                refused += path in problems
                continue
            try:
                random_variables(model)
            except (ConfigError, ValueError, TypeError):  # the model itself refuses the value
                continue
            round_trip(exporter, model, path, tmp_path / str(next(number)), monkeypatch)
            passed += 1
        assert passed or (refused and values is not ANY), path


def test_what_is_named_has_to_be_a_field():
    with pytest.raises(TypeError, match="CLIP: widht: no field of TextTransformer, or required"):
        Expressible("CLIP", TextTransformer, anything("width", "depth", "heads", "mlp_width", "vocab_size", "length",
                                                      "widht"))  # fmt: skip
    with pytest.raises(TypeError, match="CLIP: length, vocab_size: no field of"):
        Expressible("CLIP", TextTransformer, anything("width", "depth", "heads", "mlp_width"))


def test_an_exporter_without_names_is_no_exporter():
    with pytest.raises(TypeError, match="has to name the fields"):
        dataclasses.replace(vit.CLASSIFIER, expressible=None)


def test_what_training_alone_needs_is_told_so(tmp_path):
    model = models.build("vit", **VIT, scan=False, drop_path=0.1)
    loaded = pretrained.Pretrained(model, random_variables(model), None, None, {})
    with pytest.raises(
        ConfigError, match=r"ViT has no drop_path = 0\.1 \(which training alone needs: load it with drop"
    ):
        pretrained.save(loaded, tmp_path)
