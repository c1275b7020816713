"""Compiler options: where they apply, and that they change no result."""

import platform
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core import compiling
from vitvlm.nn.attend import attend

X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_tests_share_what_they_compiled():
    """JAX reads the folder's name when it is imported: tests/conftest.py has to set it before."""
    assert jax.config.jax_compilation_cache_dir


def test_one_x86_cpu_computes_products_by_onednn():
    options = compiling.compiler_options(jax.devices("cpu")[:1])
    assert options == compiling.LOOPS | (compiling.ONEDNN if X86 else {})
    compiled = jax.jit(jnp.matmul).lower(jnp.ones((197, 64)), jnp.ones((64, 48))).compile(compiler_options=options)
    assert ("onednn_fusion" in compiled.as_text()) == X86


def test_other_devices_are_left_alone():
    tpu = types.SimpleNamespace(platform="tpu")
    cpu = jax.devices("cpu")[0]
    assert compiling.compiler_options([tpu]) == {}
    assert compiling.compiler_options([cpu, tpu]) == {}
    assert compiling.compiler_options([cpu, cpu]) == compiling.LOOPS


def test_the_users_choice_stands(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false")
    assert compiling.compiler_options(jax.devices("cpu")[:1]) == compiling.LOOPS
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false --xla_disable_hlo_passes=cse")
    assert compiling.compiler_options(jax.devices("cpu")[:1]) == {}


def test_a_compiler_that_lacks_the_options_gets_none(monkeypatch):
    monkeypatch.setattr(compiling, "ONEDNN", {"xla_cpu_no_such_option": True})
    assert compiling.compiler_options(jax.devices("cpu")[:1]) == compiling.LOOPS


def test_a_loop_does_not_hold_widened_copies_of_all_layers():
    """Temporaries do not grow with the number of layers, as they would by 4 bytes for each bfloat16 number."""

    def loss(x, layers):
        return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer.astype(jnp.float32)), None), x, layers)[0].sum()

    def temporaries(depth, **options):
        shapes = jax.ShapeDtypeStruct((4, 64), jnp.float32), jax.ShapeDtypeStruct((depth, 64, 64), jnp.bfloat16)
        return jax.jit(loss).lower(*shapes).compile(**options).memory_analysis().temp_size_in_bytes

    options = compiling.compiler_options(jax.devices("cpu")[:1])
    assert temporaries(8) > temporaries(4) + 4 * 4 * 64 * 64 - 4096, "the compiler has learned it: leave the option out"
    assert temporaries(8, compiler_options=options) < temporaries(4, compiler_options=options) + 4096


def _attention(x, kernel, mask):
    """Products of every kind, with all that the compiler could fuse into them, and two that could be one fusion."""
    q, k, v = jnp.split((x @ kernel).reshape(*x.shape[:2], -1, 3).transpose(0, 2, 1, 3), 3, -1)
    mixed = attend(jnp.tanh(q), k * 2, v - 1, mask)
    both = x @ kernel + jnp.abs(x) @ jnp.exp(kernel)
    return jnp.sum(jnp.sin(mixed)) + jnp.mean(both**2)


@pytest.mark.parametrize("B, N, D", [(1, 1, 3), (8, 5, 6), (2, 17, 12), (3, 50, 21)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loop", ["python", "scan"])
def test_values_and_gradients_are_those_of_the_default(B, N, D, dtype, loop):
    rng = np.random.default_rng(B)
    x, kernel = (jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in ((B, N, D), (D, D)))
    mask = jnp.asarray(rng.random((B, 1, N, N)) < 0.8)

    def loss(x, kernel):
        if loop == "python":
            return _attention(x, kernel, mask).astype(jnp.float32)
        return jax.lax.scan(
            lambda total, x: (total + _attention(x, kernel, mask), None), jnp.zeros((), dtype), x[None]
        )[0].astype(jnp.float32)

    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(x, kernel)
    expected = lowered.compile()(x, kernel)
    actual = lowered.compile(compiler_options=compiling.compiler_options(jax.devices("cpu")[:1]))(x, kernel)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        scale = float(jnp.abs(one).max())
        np.testing.assert_allclose(np.float32(other), np.float32(one), atol=tolerance * max(scale, 1))
