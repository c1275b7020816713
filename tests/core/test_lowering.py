"""The case of a platform: which is taken, for which devices, under jit, vmap, shard_map and eagerly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from vitvlm.core.lowering import by_platform


def plus_one(x, y):
    return {"sum": x + y + 1}


# They give other numbers, to be told apart; what is called in earnest is equal.
CASES = {name: lambda x, y, n=n: {"sum": x + y + n} for n, name in enumerate(("one_cpu", "cpu", "tpu"), start=2)}


def choose(x, y=None, **cases):
    return by_platform(plus_one, x, x if y is None else y, **(cases or CASES))["sum"]


def test_here_on_one_cpu():
    assert choose(jnp.zeros(())) == jax.jit(choose)(jnp.zeros(())) == 2
    assert choose(jnp.zeros(()), cpu=CASES["cpu"]) == 3
    assert choose(jnp.zeros(()), tpu=CASES["tpu"], one_cpu=None) == 1


@pytest.mark.parametrize("platform, number", [("cpu", 2), ("tpu", 4), ("cuda", 1)])
def test_the_platform_of_the_program_not_of_the_host(platform, number):
    program = jax.jit(choose).trace(jnp.zeros(3)).lower(lowering_platforms=(platform,)).as_text()
    assert [n for n in range(1, 5) if f"dense<{n}.0" in program] == [number]


def test_several_devices_are_not_one_cpu():
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    program = jax.jit(choose).trace(x).lower(lowering_platforms=("cpu",)).as_text()
    assert [n for n in range(1, 5) if f"dense<{n}.0" in program] == [3]


def test_a_program_for_several_platforms_takes_the_default():
    program = jax.export.export(jax.jit(choose), platforms=("cpu", "tpu"))(jnp.zeros(3)).mlir_module()
    assert [n for n in range(1, 5) if f"dense<{n}.0" in program] == [1]


def test_vmap_maps_every_case():
    x, y = jnp.arange(3.0), jnp.arange(4.0)
    both = jax.vmap(jax.vmap(choose, (None, 0)), (0, None))
    np.testing.assert_allclose(jax.jit(both)(x, y), x[:, None] + y + 2)
    program = jax.jit(both).trace(x, y).lower(lowering_platforms=("tpu",)).as_text()
    assert "dense<4.0" in program and "dense<1.0" not in program


def test_scan_and_shard_map():
    total, _ = jax.lax.scan(lambda total, x: (choose(total, x), None), jnp.zeros(()), jnp.arange(3.0))
    assert total == 0 + 1 + 2 + 3 * 2
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(choose, mesh=mesh, in_specs=(spec,), out_specs=spec)
    np.testing.assert_allclose(jax.jit(mapped)(jnp.ones(2)), 4)


def test_as_the_rule_of_a_derivative():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, d: (by_platform(lambda d: 2 * d, d, cpu=lambda d: 20 * d),))
    step = jax.checkpoint(lambda x: jnp.sum(double(jnp.sin(x))))
    np.testing.assert_allclose(jax.grad(step)(jnp.ones(3)), 20 * np.cos(np.ones(3)), rtol=1e-6)
    with pytest.raises(NotImplementedError, match="by_platform"):
        jax.grad(functools.partial(choose, y=jnp.zeros(())))(jnp.zeros(()))
