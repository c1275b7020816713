"""Connectors: what becomes of a grid of tokens, how many image tokens that makes, and what cannot be connected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.models.connectors import CONNECTORS, build_connector
from vitvlm.nn.roles import roles_of

GRID, E, D = (4, 6), 5, 7
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(2, 24, E)).astype(np.float32)
CASES = {
    "linear": {},
    "mlp": {"layers": 3, "activation": "relu"},
    "pixel_shuffle": {"bias": True},
    "average_pool": {"layers": 2},
    "none": {"bias": False},
}


def squares(kind):
    """The tokens of each square of 2 x 2, one by one: [B, h/2 * w/2, 4, E]; of other kinds, the tokens alone."""
    if kind not in ("pixel_shuffle", "average_pool"):
        return FEATURES[:, :, None]
    h, w = GRID
    found = []
    for row in range(0, h, 2):
        for column in range(0, w, 2):
            found.append([FEATURES[:, (row + y) * w + column + x] for y in (0, 1) for x in (0, 1)])
    return np.asarray(found).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("kind", CASES)
def test_tokens_are_those_of_a_loop_over_squares(kind):
    connector = build_connector({"name": kind, **CASES[kind]}, width=D)
    shapes = jax.eval_shape(lambda: connector.init(jax.random.key(0), FEATURES, GRID))["params"]
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
    found = connector.apply({"params": params}, FEATURES, GRID).tokens
    rows = squares(kind)
    expected = rows.mean(axis=2) if kind == "average_pool" else rows.reshape(*rows.shape[:2], -1)
    act = {"relu": lambda x: np.maximum(x, 0), "gelu": lambda x: np.asarray(jax.nn.gelu(x, approximate=False))}
    for i in range(len(params)):
        expected = expected if i == 0 else act[connector.activation](expected)
        expected = expected @ params[f"layers_{i}"]["kernel"] + params[f"layers_{i}"].get("bias", 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (2, connector.count(GRID), D)
    assert len(params) == CASES[kind].get("layers", 1)
    assert {role.kind for role in roles_of(connector, flatten(shapes)).values()} <= {"matrix", "bias"}


def test_every_connector_of_maps_is_here():
    kinds = [
        name for name in CONNECTORS.names() if "layers" in getattr(CONNECTORS.get(name), "__dataclass_fields__", ())
    ]
    assert sorted(kinds) == sorted(CASES)


REFUSED = {
    "no name": ({}, GRID, r"model.connector.name: missing; there is: average_pool, "),
    "unknown": ({"name": "mpl"}, GRID, r"connector 'mpl': no such connector; did you mean \"mlp\"\?"),
    "field": ({"name": "mlp", "layer": 3}, GRID, r"model.connector.layer: no such field; did you mean \"layers\"\?"),
    "layers": ({"name": "mlp", "layers": 0}, GRID, "model.connector.layers: 0; there must be one"),
    "factor": ({"name": "pixel_shuffle", "factor": 3}, GRID, r"3 does not divide the grid of 4 x 6 .* may have 1, 2\b"),
    "sides": ({"name": "average_pool", "factor": 4}, GRID, "4 does not divide the grid of 4 x 6 tokens, for which"),
    "CLS": ({"name": "average_pool"}, (4, 5), "average_pool needs the tokens of one grid, 4 x 5 = 20, and is given 24"),
    "activation": ({"name": "mlp", "activation": "gelo"}, GRID, 'no such activation; did you mean "gelu"'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_connected_is_refused(case):
    fields, grid, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        build_connector(fields, width=D).init(jax.random.key(0), FEATURES, grid)


VIT = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "mlp_width": 12, "patch_size": (2, 3), "image_size": (4, 9)}
TEXT = {"name": "decoder", "width": 8, "depth": 1, "heads": 2, "mlp_width": 12, "vocab_size": 9, "length": 6}


def test_without_an_encoder_only_its_patch_counts():
    model = models.build("vlm", image=VIT, connector={"name": "none"}, text=TEXT, image_token=8)
    assert model.image.patch == model.image_encoder.patch == (2, 3)
    images, texts = jnp.asarray(RNG.normal(size=(1, 1, 4, 9, 3)), jnp.float32), jnp.full((1, 6), 8)
    variables = model.init(jax.random.key(0), images, texts)
    assert set(variables["params"]) == {"connector", "text"}
    maps = variables["params"]["connector"]["layers_0"]
    patch = images[0, 0, 2:4, 3:6].reshape(-1)  # row 1, column 1 of a grid of 2 x 3
    found = model.apply(variables, images, method=model.encode_images)
    np.testing.assert_allclose(found[0, 0, 4], patch @ maps["kernel"] + maps["bias"], atol=1e-5)
    plain = models.build("vlm", image={"patch_size": 3}, connector={"name": "none"}, text=TEXT)
    assert plain.image.patch == (3, 3)
    with pytest.raises(ConfigError, match=r'model.image: connector "none" cuts the image into patches'):
        resnet = {"name": "resnet", "widths": (8,), "depths": (1,), "stem_width": 8}
        models.build("vlm", image=resnet, connector={"name": "none"}, text=TEXT)
    with pytest.raises(ConfigError, match=r"model.image.patchsize: no such field"):
        models.build("vlm", image={"patchsize": 3}, connector={"name": "none"}, text=TEXT)
