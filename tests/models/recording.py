"""Record of what every model computes, so that a change of the shared parts changes none of it in silence.

    python -m tests.models.recording [CASE ...]

rewrites tests/models/golden/CASE.jsonl: paths, shapes and initial values of the parameters, outputs with everything
that can be captured, and gradients of a training call. Rewrite a record only for a change that is wanted, and review
its diff.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.jobs import golden
from vitvlm import models
from vitvlm.core import config as config_lib
from vitvlm.core import paths

FOLDER = pathlib.Path(__file__).parent / "golden"
B, L, CLASSES = 2, 6, 5

VIT = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch_size": 4, "image_size": (8, 12)}
TEXT = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "vocab_size": 40, "length": L}
T5 = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "vocab_size": 40}
SWIN = {"width": 8, "depths": (2, 2), "heads": (2, 4), "window": 2, "patch_size": 2, "image_size": (8, 12)}
RESNET = {"widths": (8, 12, 16), "depths": (1, 2, 1), "stem_width": 8}
RATES = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.2}

# Models that no config has, or has otherwise.
MODELS = {
    "vit-scanned": {"name": "vit", **VIT, **RATES, "layer_scale": 0.1, "num_classes": CLASSES},
    "vit-looped-swiglu": {"name": "vit", **VIT, "scan": False, "mlp": "swiglu", "registers": 2, "pool": "cls_and_gap"},
    "vit-remat-map": {"name": "vit", **VIT, "remat": "full", "pool": "map", "num_classes": CLASSES},
    "vit-norm_pooled": {
        "name": "vit",
        **VIT,
        "pre_norm": True,
        "norm_pooled": True,
        "projection": 12,
        "norm_eps": 1e-5,
    },
    "vit-mean-head": {"name": "vit", **VIT, "qkv_bias": False, "activation": "quick_gelu", "head_input": "mean"}
    | {"num_classes": CLASSES},
    "deit": {"name": "deit", **VIT, "num_classes": CLASSES},
    "mae-scanned": {"name": "mae", **VIT, "decoder_width": 12, "decoder_depth": 2, "decoder_heads": 3},
    "swin": {"name": "swin", **SWIN, "drop_path": 0.2, "num_classes": CLASSES},
    "multiscale": {"name": "multiscale", "num_classes": CLASSES}
    | {"backbone": {"name": "fpn", "width": 12, "backbone": {"name": "resnet", **RESNET}}}
    | {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24},
    "qwen_vit": {"name": "qwen_vit", "width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch_size": 4}
    | {"drop_path": 0.2, "num_classes": CLASSES},
    "resnet": {"name": "resnet", **RESNET, "num_classes": CLASSES},
    "fpn": {"name": "fpn", "backbone": {"name": "resnet", **RESNET}, "width": 12, "extra_levels": 1},
    "efficientnet": {"name": "efficientnet", "width_factor": 0.25, "widths": (16, 24), "depths": (1, 2)}
    | {"kernels": (3, 5), "strides": (1, 2), "expansions": (1, 4), "num_classes": CLASSES},
    "text-causal": {"name": "text", **TEXT, **RATES, "eot_id": 2},
    "text-cls": {"name": "text", **TEXT, "pool": "cls", "norm_pooled": True, "scan": False},
    "text-last": {"name": "text", **TEXT, "causal": False, "pool": "last", "projection": 12},
    "bert-scanned": {"name": "bert", **TEXT, **RATES},
    "bert_decoder-scanned": {"name": "bert_decoder", **TEXT, **RATES},
    "t5-scanned": {"name": "t5", **T5, **RATES},
    "t5-looped-gated": {"name": "t5", **T5, "mlp": "gated", "activation": "gelu_tanh", "tied": False, "scan": False},
    "clip": {"name": "two_towers", "embed_dim": 12, "image": {"name": "vit", **VIT}, "text": {"name": "text", **TEXT}},
    "blip-scanned": {"name": "blip", "embed_dim": 12, "image": {"name": "vit", **VIT}, "text": {**TEXT, **RATES}}
    | {"start_id": 1, "stop_id": 2},
    "blip_retrieval-looped": {"name": "blip_retrieval", "embed_dim": 12, "image": {"name": "vit", **VIT}, "text": TEXT}
    | {"encode_id": 3, "scan": False},
    "blip_vqa-scanned": {"name": "blip_vqa", "image": {"name": "vit", **VIT}, "text": {**TEXT, "width": 12}}
    | {"start_id": 1, "stop_id": 2, "encode_id": 3},
    "coca-scanned": {"name": "coca", "embed_dim": 16, "queries": 5, "pool_heads": 2, "decoder_depth": 2}
    | {"decoder_heads": 2, "image": {"name": "vit", **VIT}, "text": {"name": "text", **TEXT, **RATES, "pool": "cls"}},
    "coca-cascade": {"name": "coca", "embed_dim": 16, "queries": 5, "pool_heads": 2, "decoder_depth": 2}
    | {"decoder_heads": 2, "pooling": "cascade"}
    | {"image": {"name": "vit", **VIT}, "text": {"name": "text", **TEXT, "pool": "cls", "scan": False}},
    "blip2_qformer-scanned": {"name": "blip2_qformer", "image": {"name": "vit", **VIT}, "embed_dim": 8, "start_id": 3}
    | {"qformer": {**TEXT, **RATES, "depth": 3, "queries": 5, "lm_head": True}},
}
DECODER = {"name": "decoder", **TEXT, "length": 40, "kv_heads": 1}
MODELS |= {
    "vlm-scanned": {
        "name": "vlm",
        "image": {"name": "vit", **VIT, "image_size": (8, 16)},
        "connector": {"name": "pixel_shuffle"},
    }
    | {"text": {**DECODER, **RATES}, "features": (1, -2), "image_token": 1},
    "vlm-none-looped": {"name": "vlm", "image": {"name": "vit", **VIT}, "connector": {"name": "none"}}
    | {"text": {**DECODER, "tied": True}, "image_token": 1, "scan": False},
}
CAPTURED = {"multiscale": ("hidden",), "resnet": (), "fpn": (), "efficientnet": ()}  # of other models: all there is
CASES = sorted([*MODELS, *golden.CONFIGS])


def model_fields(case: str) -> dict:
    """The fields of a case's model, that of a config at debug size."""
    if case in MODELS:
        return dict(MODELS[case])
    fields = config_lib.plain(golden.load(case, "debug"))["model"]
    if fields["name"] == "vlm" and fields.get("image_token") is None:  # its batches say where images stand
        fields["image_token"] = 1
    return fields | ({"num_classes": CLASSES} if fields.get("num_classes") == "data" else {})


def record(case: str) -> dict:
    """Describes a case's model and what it computes, as JSON: see `_numbers` for how an array is written."""
    fields = model_fields(case)
    name = fields.pop("name")
    model = models.build(name, **fields)
    inputs = _inputs(name, fields)
    keys = {"params": jax.random.key(1), "mask": jax.random.key(2), "dropout": jax.random.key(3)}
    initial = jax.jit(model.init)(keys, *inputs)
    variables = paths.map_with_path(_values, initial)
    captured = CAPTURED.get(name, ("hidden", "attention"))

    def call(params, train: bool):
        read = {**variables, "params": params}
        given = {"capture": captured} if captured and not train else {}
        mutable = [each for each in variables if each != "params"] if train else []
        return model.apply(read, *inputs, train=train, rngs=keys, mutable=mutable, **given)[0]

    def loss(params):
        leaves = _leaves(call(params, True))
        return sum(jnp.vdot(leaf, _direction(path, leaf.shape)) / leaf.size**0.5 for path, leaf in leaves.items())

    outputs, gradients = jax.jit(lambda params: (_leaves(call(params, False)), jax.grad(loss)(params)))(
        variables["params"]
    )
    return {
        "initial": {path: _numbers(path, leaf) for path, leaf in paths.flatten(initial).items()},
        "outputs": {path: _numbers(path, leaf) for path, leaf in outputs.items()},
        "gradients": {path: _numbers(path, leaf) for path, leaf in paths.flatten(gradients).items()},
    }


def file(case: str) -> pathlib.Path:
    return FOLDER / f"{case.removeprefix('configs/').replace('.py', '').replace(':', '-')}.jsonl"


def _inputs(name: str, fields: dict) -> tuple:
    image = fields.get("image", fields)
    size = image.get("image_size", (64, 96) if name in ("resnet", "fpn", "multiscale", "efficientnet") else 32)
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(B, height, width, 3)), jnp.float32)
    text = fields.get("text", fields.get("qformer", fields))
    length = min(text.get("length", L), 8)
    tokens = jnp.asarray(rng.integers(3, 40, size=(B, length)), jnp.int32).at[:, -2].set(2)
    if name in ("text", "bert", "bert_decoder", "decoder", "t5"):
        mask = jnp.ones((B, length), bool).at[1, -1].set(False)
        return tokens, mask
    if name == "vlm":
        model = models.build(name, **fields)
        p, q = model.image.patch or (14, 14)
        count = model.connector.count((height // p, width // q))
        return images[:, None], jnp.concatenate([tokens, jnp.full((B, count), fields["image_token"]), tokens], axis=1)
    return (images, tokens) if text is not fields else (images,)


def _values(path: str, leaf: jax.Array) -> jax.Array:
    """Numbers that the path alone decides: small, and near one for the scale of a norm and for a variance."""
    values = _direction(path, leaf.shape) * 0.2
    if path.endswith("/var"):
        values = jnp.exp(values)
    elif path.endswith("norm/scale"):
        values = 1 + values
    return values.astype(leaf.dtype)


def _direction(path: str, shape: tuple[int, ...]) -> jax.Array:
    seed = [ord(letter) for letter in path]
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _leaves(output) -> dict[str, jax.Array]:
    """Arrays of floating-point numbers in an output, by their place in it."""
    found = jax.tree_util.tree_flatten_with_path(output)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
    return {path: leaf for path, leaf in named.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}


def _numbers(path: str, leaf: jax.Array) -> list:
    """Shape and dtype, the length of an array as a vector, and its product with a fixed direction of that path."""
    values = np.asarray(leaf, np.float64)
    product = float(np.vdot(values, np.asarray(_direction(path, leaf.shape), np.float64)))
    return [
        "x".join(map(str, leaf.shape)),
        str(leaf.dtype),
        float(f"{np.linalg.norm(values):.7g}"),
        float(f"{product:.7g}"),
    ]


def dump(recorded: dict) -> str:
    """A record as JSON, one array a line."""
    rows = [json.dumps({kind: {path: row}}) for kind, arrays in recorded.items() for path, row in arrays.items()]
    return "\n".join(rows) + "\n"


def load(case: str) -> dict:
    """The record of a case, as `record` gives it."""
    recorded = {"initial": {}, "outputs": {}, "gradients": {}}
    for line in file(case).read_text().splitlines():
        for kind, arrays in json.loads(line).items():
            recorded[kind] |= arrays
    return recorded


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in sys.argv[1:] or CASES:
        file(case).write_text(dump(record(case)))
        print(case)
