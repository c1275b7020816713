"""Roles of parameters, and what follows from them: layers as published code counts them, decay, optimizers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_models

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.durations import Clock
from vitvlm.core.paths import flatten
from vitvlm.nn.roles import Role, roles_of
from vitvlm.training import layers, methods, optimizer

TEXT = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "vocab_size": 9, "length": 6}
VIT = toy_models.TRANSFORMER | {"scan": False}
NAFLEX = {name: value for name, value in VIT.items() if name != "image_size"} | {"position_grid": (2, 3)}
BLIP = {"image": {"name": "vit", **VIT}, "text": TEXT | {"scan": False}}
TOWERS = {"image": {"name": "vit", **VIT}, "text": {"name": "text", **TEXT, "scan": False}, "embed_dim": 4}
MODELS = {
    "vit": VIT
    | {
        "pool": "map",
        "registers": 2,
        "layer_scale": 0.1,
        "pre_norm": True,
        "num_classes": 3,
        "representation_size": 5,
        "projection": 4,
    },
    "deit": VIT | {"num_classes": 3},
    "mae": VIT | {"decoder_width": 8, "decoder_depth": 2, "decoder_heads": 2, "positions": "learned"},
    "swin": toy_models.SIZES["swin"] | {"num_classes": 3, "positions": "learned", "image_size": (8, 12)},
    "resnet": toy_models.RESNET | {"num_classes": 3},
    "efficientnet": toy_models.SIZES["efficientnet"] | {"num_classes": 3},
    "fpn": toy_models.SIZES["fpn"],
    "multiscale": {
        "backbone": {"name": "swin", **toy_models.SIZES["swin"]},
        **{"width": 8, "depth": 1, "heads": 2, "mlp_width": 12, "num_classes": 3, "scan": False},
    },
    "text": TEXT | {"scan": False, "projection": 3, "pool": "cls"},
    "bert": TEXT | {"scan": False, "mlm_head": True},
    "blip2_qformer": {"image": TOWERS["image"], "scan": False, "embed_dim": 4}
    | {"qformer": {**TEXT, "scan": False, "queries": 3, "lm_head": True}},
    "decoder": TEXT | {"scan": False, "positions": "learned", "embed_width": 4, "head_bias": True},
    "bert_decoder": TEXT | {"scan": False, "context_width": 4},
    "t5": {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "vocab_size": 9, "scan": False, "tied": False},
    "naflex": NAFLEX | {"num_classes": 3},
    "qwen_vit": {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "patch_size": 2, "num_classes": 3, "scan": False},
    "two_towers": TOWERS | {"image_projection": "mlp", "bias_init": 0.0},
    "blip": BLIP | {"embed_dim": 4},
    "blip_retrieval": BLIP | {"embed_dim": 4},
    "blip_captioner": BLIP,
    "blip_vqa": BLIP,
    "coca": TOWERS
    | {"text": TOWERS["text"] | {"pool": "cls"}, "queries": 3, "pool_heads": 2}
    | {"decoder_depth": 2, "decoder_heads": 2, "pooling": "cascade"},
    "vlm": {"image": TOWERS["image"], "connector": {"name": "mlp"}, "own_tokens": 2, "image_token": 0}
    | {"text": {"name": "decoder", **TEXT, "scan": False}},
}


@functools.cache
def shapes_of(name):
    """Returns (the model, the shapes of its parameters)."""
    model = models.build(name, **MODELS[name])
    images, texts = jnp.zeros((1, 8, 12, 3)), jnp.zeros((1, 5), jnp.int32)
    inputs = {
        "text": (texts,),
        "bert": (texts,),
        "decoder": (texts,),
        "bert_decoder": (texts,),
        "t5": (texts,),
        "two_towers": (images, texts),
        "coca": (images, texts),
        "vlm": (images, texts),
        "blip2_qformer": (images, texts),
        **dict.fromkeys(("blip", "blip_retrieval", "blip_captioner", "blip_vqa"), (images, texts)),
    }
    rngs = {"params": jax.random.key(0), "mask": jax.random.key(0)}
    return model, jax.eval_shape(model.init, rngs, *inputs.get(name, (images,)))["params"]


# Layers by path, the first that matches: 0 for the embeddings, i + 1 for block i, `top` for what is above.
VIT_LAYERS = [  # BEiT's and MAE's get_num_layer_for_vit; its fc_norm, head and norm are the last
    ("patches/.*|positions/.*|cls|distillation|registers|pre_norm/.*", 0),
    ("blocks_0/.*", 1),
    ("blocks_1/.*", 2),
]
TEXT_LAYERS = [("embed/.*|positions|cls|segments|embed_norm/.*|embed_in/.*", 0), ("blocks_0/.*", 1), ("blocks_1/.*", 2)]
SWIN_LAYERS = [  # SimMIM's get_swin_layer, where a stage's merging ends the stage before
    ("patches/.*|patches_norm/.*|positions/.*", 0),
    ("stages_0/blocks_0/.*", 1),
    ("stages_0/blocks_1/.*|stages_1/merge/.*", 2),
    ("stages_1/blocks_0/.*", 3),
]
T5_LAYERS = [  # of either side, like BERT's; its table of distances serves all blocks
    ("(en|de)coder/relative_buckets", 0),
    ("(en|de)coder/blocks_0/.*", 1),
    ("(en|de)coder/blocks_1/.*", 2),
]
STAGES = [  # timm's group_matcher: the stem, then block by block through all stages
    ("stem/.*", 0),
    ("stages_0/blocks_0/.*", 1),
    ("stages_1/blocks_0/.*", 2),
    ("stages_1/blocks_1/.*", 3),
    ("stages_2/blocks_0/.*", 4),
]


def inside(prefix, table):
    return [(f"{prefix}/(?:{pattern})", layer) for pattern, layer in table]


LAYERS = {
    "vit": (VIT_LAYERS, 3),
    "deit": (VIT_LAYERS, 3),
    "mae": (inside("vit", VIT_LAYERS), 3),  # the decoder is on top
    "swin": (SWIN_LAYERS, 4),
    "resnet": (STAGES, 5),
    "efficientnet": (STAGES, 5),
    "fpn": (inside("backbone", STAGES), 5),
    "multiscale": (inside("backbone", SWIN_LAYERS), 4),
    "text": (TEXT_LAYERS, 3),
    "naflex": (VIT_LAYERS, 3),
    "qwen_vit": (VIT_LAYERS, 3),
    "decoder": (TEXT_LAYERS, 3),
    "bert": (TEXT_LAYERS, 3),  # ELECTRA's: all of its embeddings are layer 0
    "bert_decoder": (TEXT_LAYERS, 3),
    "blip2_qformer": (inside("image", VIT_LAYERS) + inside("qformer", [("query_tokens", 0), *TEXT_LAYERS]), 3),
    "t5": ([("embed/.*", 0), *T5_LAYERS], 3),
    "two_towers": (inside("image", VIT_LAYERS) + inside("text", TEXT_LAYERS), 3),
    **dict.fromkeys(
        ("blip", "blip_retrieval", "blip_captioner", "blip_vqa"),
        (inside("image", VIT_LAYERS) + inside("(text|decoder)", TEXT_LAYERS), 3),
    ),
    "coca": (inside("image", VIT_LAYERS) + inside("text", TEXT_LAYERS), 3),
    "vlm": (inside("image", VIT_LAYERS) + inside("text", TEXT_LAYERS), 3),
}


def test_every_model_is_here():
    assert set(MODELS) == set(LAYERS) == set(models.names())


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_counted_as_published(name):
    model, params = shapes_of(name)
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    table, top = LAYERS[name]
    factors = layers.depth_factors(0.5, shapes, roles_of(model, shapes), "layer_decay")
    found = {path: top + round(np.log2(factor)) for path, factor in factors.items()}
    expected = {path: next((layer for pattern, layer in table if re.fullmatch(pattern, path)), top) for path in shapes}
    assert found == expected
    assert set(found.values()) == set(range(top + 1))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_multiplied_decays_and_nothing_else(name):
    model, params = shapes_of(name)
    for path, role in roles_of(model, flatten(params)).items():
        assert (role.kind == "matrix") == path.endswith("/kernel"), path
        assert (role.part == "head") == bool(
            re.search(r"(^|/)(distillation_|match_)?head/|^head_bias|decoder/prediction/", path)
        ), path
        assert (role.resample is not None) == path.endswith(
            ("positions/grid", "patches/kernel", "/relative_positions")
        ), path


def test_norms_of_a_backbones_levels_have_roles():
    model = models.build("swin", **toy_models.SIZES["swin"], level_norms=(0, 1), always_partition=True)
    shapes = flatten(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))["params"])
    roles = roles_of(model, shapes)
    assert {roles[f"level_norms_{s}/{name}"].kind for s in (0, 1) for name in ("scale", "bias")} == {"norm"}


def test_a_parameter_without_a_role_is_an_error():
    model, _ = shapes_of("vit")
    with pytest.raises(ConfigError, match=r"model ViT declares no role for its parameter gate/kernel and 1 more: add"):
        roles_of(model, ["norm/scale", "gate/kernel", "gate/bias"])


def build(name, params, model):
    clock = Clock(batch_size=8, train_examples=80, total_steps=10)
    fields = {"name": name, "weight_decay": 0.1, "layer_decay": 0.5, "clip_norm": 1.0}
    return optimizer.build(fields, {"name": "constant", "peak": 0.1}, params, clock, roles_of(model, flatten(params)))[
        0
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_optimizer_takes_every_model(name, method):
    model, params = shapes_of(name)
    tx = build(method, params, model)
    updates, _ = jax.eval_shape(lambda params: tx.update(params, tx.init(params), params), params)
    assert jax.tree.map(lambda leaf: leaf.shape, updates) == jax.tree.map(lambda leaf: leaf.shape, params)


def drawn(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_first_and_the_last_to_adam():
    """The first step of its authors' own rule: a convolution's kernel as one matrix, embeddings and heads by Adam."""
    tree = {
        "patches": {"kernel": jnp.zeros((2, 2, 3, 5))},
        "blocks_0": {
            "conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)},
            "up": {"kernel": jnp.zeros((5, 4))},
        },
        "head": {"kernel": jnp.zeros((4, 3))},
    }
    grads, params = drawn(tree), drawn(tree)

    class Toy:
        roles = (
            ("patches/kernel", Role("matrix", "embedding")),
            ("blocks_0/.*/kernel", Role("matrix", "block")),
            ("blocks_0/.*", Role("bias", "block")),
            ("head/kernel", Role("matrix", "head")),
        )

    tx = methods.muon(optax.identity(), roles_of(Toy, flatten(tree)), nesterov=False)
    updates = flatten(tx.update(grads, tx.init(params), params)[0])
    for path in ("patches/kernel", "head/kernel", "blocks_0/conv/bias"):  # Adam's first step is the sign
        np.testing.assert_allclose(updates[path], np.sign(flatten(grads)[path]), atol=1e-3, err_msg=path)
    for path in ("blocks_0/conv/kernel", "blocks_0/up/kernel"):
        x = np.asarray(flatten(grads)[path], np.float64)
        x = x.reshape(-1, x.shape[-1]) / np.linalg.norm(x)
        for _ in range(5):
            gram = x.T @ x
            x = x @ (3.4445 * np.eye(len(gram)) - 4.7750 * gram + 2.0315 * gram @ gram)
        expected = 0.2 * np.sqrt(max(x.shape)) * x
        np.testing.assert_allclose(updates[path].reshape(x.shape), expected, rtol=1e-3, atol=1e-3, err_msg=path)


def test_muon_trains_a_vit():
    model, shapes = shapes_of("deit")
    params = drawn(shapes)
    tx = build("muon", params, model)
    updates, _ = jax.jit(lambda params: tx.update(params, tx.init(params), params))(params)
    for path, update in flatten(updates).items():
        assert np.isfinite(update).all() and np.abs(update).max() > 0, path
