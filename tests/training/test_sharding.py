"""PartitionSpecs from paths and shapes; what the devices then do is tested in eight_devices/."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.core.rules import RuleError
from vitvlm.training import heads, sharding


def mesh_of(**axes):
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


MESH = mesh_of(data=2, fsdp=2, tensor=2)


def vit_shapes(scan):
    model = models.build(
        "vit",
        width=16,
        depth=3,
        heads=4,
        mlp_width=32,
        patch_size=4,
        image_size=8,
        num_classes=5,
        pool="map",
        scan=scan,
    )
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


def specs(tree, by, mesh=MESH):
    return {path: leaf.spec for path, leaf in flatten(sharding.shardings(tree, by, mesh)).items()}


def test_replicated_splits_nothing():
    assert set(specs(vit_shapes(True), "replicated").values()) == {P()}


MEGATRON = {
    **{f"attention/{name}/kernel": ("fsdp", "tensor") for name in ("query", "key", "value")},
    **{f"attention/{name}/bias": ("tensor",) for name in ("query", "key", "value")},
    "attention/out/kernel": ("tensor", "fsdp"),
    "mlp/up/kernel": ("fsdp", "tensor"),
    "mlp/up/bias": ("tensor",),
    "mlp/down/kernel": ("tensor", "fsdp"),
}


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("preset", ["tensor", "fsdp+tensor"])
def test_tensor_presets_split_columns_then_rows(preset, scan):
    actual = specs(vit_shapes(scan), preset)
    for path, both in MEGATRON.items():
        expected = both if preset == "fsdp+tensor" else tuple(None if axis == "fsdp" else axis for axis in both)
        layers = (
            {f"blocks/{path}": P(None, *expected)} if scan else {f"blocks_{i}/{path}": P(*expected) for i in range(3)}
        )
        for layer, spec in (layers | {f"pool/{path}": P(*expected)}).items():
            assert actual[layer] == spec, layer
    others = [spec for path, spec in actual.items() if not path.endswith(tuple(MEGATRON))]
    assert not any("tensor" in spec for spec in others)
    assert any("fsdp" in spec for spec in others) == (preset == "fsdp+tensor")


def test_swiglu_is_split_as_an_mlp_is():
    tree = {"mlp": {name: {"kernel": np.zeros((8, 4))} for name in ("gate", "up", "down")}}
    expected = {"gate": P(None, "tensor"), "up": P(None, "tensor"), "down": P("tensor", None)}
    assert specs(tree, "tensor") == {f"mlp/{name}/kernel": spec for name, spec in expected.items()}


def language_shapes(name="decoder", **fields):
    sizes = {"width": 16, "depth": 2, "heads": 4, "mlp_width": 32, "vocab_size": 12} | fields
    return jax.eval_shape(models.build(name, **sizes).init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]


def test_language_models_split_heads_hidden_layers_and_words():
    decoder = specs(language_shapes(length=8, kv_heads=2, head_bias=True), "fsdp+tensor")
    assert decoder["embed/embedding"] == P("tensor", "fsdp") and decoder["head/kernel"] == P("fsdp", "tensor")
    assert decoder["head_bias"] == P("tensor")
    assert decoder["blocks/attention/key/kernel"] == decoder["blocks/mlp/gate/kernel"] == P(None, "fsdp", "tensor")
    t5 = specs(language_shapes("t5", tied=False), "tensor")
    for side, kinds in (("encoder", ["attention"]), ("decoder", ["attention", "cross"])):
        assert t5[f"{side}/relative_buckets"] == P(None, "tensor")
        for kind in kinds:
            assert t5[f"{side}/blocks/{kind}/query/kernel"] == P(None, None, "tensor")
            assert t5[f"{side}/blocks/{kind}/out/kernel"] == P(None, "tensor", None)


def test_a_vocabulary_that_does_not_divide_stays_whole():
    found = specs(language_shapes(length=8, vocab_size=13, head_bias=True), "fsdp+tensor")
    assert found["embed/embedding"] == P(None, "fsdp") and found["head/kernel"] == P("fsdp", None)
    assert found["head_bias"] == P(None)


def test_a_rule_may_name_a_preset_and_an_axis_that_need_not_divide():
    keys = r"(.*/)?attention/(key|value)/.*"
    found = specs(language_shapes(length=8, qkv_bias=True), [(keys, "replicate"), (".*", "tensor")])
    by_preset = specs(language_shapes(length=8, qkv_bias=True), "tensor")
    changed = {path for path in found if found[path] != by_preset[path]}
    names = ("key/kernel", "key/bias", "value/kernel", "value/bias")
    assert changed == {f"blocks/attention/{name}" for name in names} and {found[path] for path in changed} == {P()}
    tree = {"a": np.zeros((8, 5)), "b": np.zeros((7, 6))}
    assert specs(tree, [(".*", ("fsdp?", "tensor?"))]) == {"a": P("fsdp", None), "b": P(None, "tensor")}
    with pytest.raises(ConfigError, match=r"the mesh has no axis 'tensr'"):
        specs(tree, [(".*", ("fsdp?", "tensr?"))])


def check_heads(by, mesh, **fields):
    model = models.build("decoder", width=16, depth=2, heads=4, mlp_width=32, vocab_size=12, length=8, **fields)
    init, inputs = model.init, (jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    found = heads.heads_of(init, *inputs)
    heads.check_heads(found, sharding.shardings(jax.eval_shape(init, *inputs)["params"], by, mesh))
    return found


@pytest.mark.parametrize("fields", [{}, {"scan": False}, {"pattern": ("local", "global"), "local": 2}])
def test_a_head_that_would_be_cut_is_an_error_that_says_what_to_do(fields):
    """16 columns of keys divide by 4, but they are 2 heads; along axes of the batch a head may be cut."""
    four, whole = mesh_of(data=2, tensor=4), [[".*(attention|cross)/(key|value)/.*", "replicate"], [".*", "tensor"]]
    found = check_heads("tensor", mesh_of(data=4, tensor=2), kv_heads=2, **fields)
    assert len(found) in (3, 6) and set(found.values()) == {2, 4}
    check_heads(whole, four, kv_heads=2, **fields)
    check_heads("fsdp", mesh_of(fsdp=8), kv_heads=2, **fields)
    check_heads("tensor", four, **fields)
    with pytest.raises(
        ConfigError, match=r"/key/kernel': 2 heads of keys and values cannot be split over tensor = 4: "
    ):
        check_heads("tensor", four, kv_heads=2, **fields)
    with pytest.raises(ConfigError, match=r"begin the rules with .*replicate"):
        check_heads("tensor", four, kv_heads=2, **fields)
    with pytest.raises(
        ConfigError, match=r"/query/kernel': 4 heads of queries cannot be split over tensor = 8: change"
    ):
        check_heads(whole, mesh_of(tensor=8), kv_heads=2, **fields)


def test_fsdp_splits_the_largest_dimension_that_divides_and_never_the_depth():
    tree = {
        "head": {"kernel": np.zeros((6, 9)), "bias": np.zeros(9)},
        "patches": {"projection": {"kernel": np.zeros((12, 8))}},
        "square": np.zeros((4, 4)),
        "scale": np.zeros(()),
        "blocks": {"mlp": {"up": {"kernel": np.zeros((64, 4, 6))}}, "norm": {"scale": np.zeros((2, 3))}},
    }
    assert specs(tree, "fsdp", mesh_of(data=1, fsdp=2)) == {
        "head/kernel": P("fsdp", None),  # 9 is larger, but odd
        "head/bias": P(None),
        "patches/projection/kernel": P("fsdp", None),
        "square": P(None, "fsdp"),
        "scale": P(),
        "blocks/mlp/up/kernel": P(None, None, "fsdp"),
        "blocks/norm/scale": P(None, None),
    }


def test_rules_of_the_user():
    mesh = mesh_of(data=2, expert=2, tensor=2)
    tree = {"a": np.zeros((8, 6)), "b": np.zeros((4, 3)), "blocks": {"c": np.zeros((3, 4))}}
    by = [("a", [["expert", "tensor"], None]), ("b", "replicate"), (".*/c", ("expert",))]
    assert specs(tree, by, mesh) == {"a": P(("expert", "tensor"), None), "b": P(), "blocks/c": P(None, "expert")}


@pytest.mark.parametrize(
    ("tree", "by", "error", "message"),
    [
        ({"a": (4, 6)}, "fdsp", ConfigError, r'config\.sharding: no preset .fdsp.; did you mean "fsdp"\?'),
        ({"a": (4, 6)}, [("b", "fsdp")], RuleError, r"config\.sharding: no rule covers 'a'"),
        ({"a": (4, 6)}, [("a", "fsdp"), ("b", "fsdp")], RuleError, r"config\.sharding: never used: 'b'"),
        ({"a": (4, 6)}, [("a", "split")], ConfigError, r"'split' for 'a'; write"),
        ({"a": (4, 6)}, [("a", ("fsdp",))], ConfigError, r"\('fsdp',\) for 'a' does not fit the dimensions \(4, 6\)"),
        ({"a": (4, 6)}, [("a", ("fdsp", None))], ConfigError, r'the mesh has no axis .fdsp.; did you mean "fsdp"\?'),
        ({"a": (4, 7)}, [("a", (None, "tensor"))], ConfigError, r"'a' \(4, 7\) cannot be split .*: 7 .* tensor = 2;"),
        ({"a": (6,)}, [("a", (("fsdp", "tensor"),))], ConfigError, r"6 is not divisible by fsdp x tensor = 4"),
        ({"mlp": {"up": {"bias": (5,)}}}, "tensor", ConfigError, r"'mlp/up/bias' \(5,\) cannot be split"),
    ],
)
def test_rules_that_do_not_fit_are_errors_that_name_path_shape_and_axis(tree, by, error, message):
    arrays = jax.tree.map(np.zeros, tree, is_leaf=lambda node: isinstance(node, tuple))
    with pytest.raises(error, match=message):
        sharding.shardings(arrays, by, MESH)


def test_a_preset_whose_axis_the_mesh_lacks_is_an_error():
    with pytest.raises(ConfigError, match=r"the mesh has no axis 'tensor'"):
        sharding.shardings(vit_shapes(True), "tensor", mesh_of(data=8))


def test_batches_are_split_over_data_and_fsdp_where_the_mesh_has_them():
    assert sharding.batch_sharding(MESH).spec == P(("data", "fsdp"))
    assert sharding.batch_sharding(mesh_of(data=4, tensor=2)).spec == P(("data",))
    assert sharding.batch_sharding(mesh_of(tensor=2)).spec == P(())


def test_make_mesh_on_one_device():
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, r"config\.mesh: \{'data': 3\} does not make up 1 device"),
        ({"data": -1, "tensor": 2}, r"does not make up 1 device"),
        ({"data": -1, "fsdp": -1}, r"at most one of them -1"),
        ({"data": 0}, r"sizes must be positive"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_are_errors(axes, message):
    with pytest.raises(ConfigError, match=message):
        sharding.make_mesh(axes, devices=jax.devices()[:1])
