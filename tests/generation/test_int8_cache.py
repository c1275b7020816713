"""Keys and values rounded to int8: near the whole ones, in caches of all tokens and in rings, one pass or many."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import llama, speaking

from vitvlm.generation import Options, Writer
from vitvlm.nn.caches import Int8Cache, KVCache, RingCache, empty


def test_what_is_kept_is_near_by_half_a_step():
    new = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 8)), jnp.float32)
    for kind, room in ((KVCache, 9), (RingCache, 7)):
        cache = empty(kind, None, 2, 3, room, 8, jnp.int8)
        assert isinstance(cache, Int8Cache) and cache.values.key.dtype == jnp.int8
        seen = cache.append(new, 2 * new)
        at = {int(place): i for i, place in enumerate(seen.places())}
        for place in range(5):
            for kept, given in ((seen.key, new), (seen.value, 2 * new)):
                step = jnp.abs(given[:, :, place]).max(axis=-1, keepdims=True) / 127
                assert (abs(kept[:, :, at[place]] - given[:, :, place]) <= 0.501 * step).all()
        assert seen.kept().length == 5


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("fields", [{}, {"pattern": ("local", "global"), "local": 4}], ids=["global", "local"])
def test_logits_stay_near(fields, scan):
    loaded = speaking(**fields)
    model, variables = loaded.model, loaded.variables
    if scan:
        from vitvlm.nn.stacking import stack_blocks

        periods = {"": 2} if fields else {}
        model, variables = model.clone(scan=True), {"params": stack_blocks(variables["params"], periods)}
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 300, (2, 11)))
    run = jax.jit(lambda cache, ids: model.apply(variables, ids, cache=cache))
    exact, near = (run(run(cache, ids[:, :9]).cache, ids[:, 9:]).logits for cache in caches(model))
    assert 0 < abs(exact - near).max() < 0.05 * abs(exact).max()


def caches(model):
    return model.empty_cache(2, 16), model.empty_cache(2, 16, jnp.int8)


def test_a_writer_writes_with_it():
    _, loaded = llama()
    options = Options(max_new_tokens=8, log_probs=True, stop_ids=())
    (exact,), (near,) = (Writer(loaded, cache).write_ids([[3, 4, 5]], options)[0] for cache in (None, "int8"))
    np.testing.assert_allclose(near.log_probs[:2], exact.log_probs[:2], atol=0.1)
    (beams,) = Writer(loaded, "int8").write_ids([[3, 4, 5]], Options(max_new_tokens=8, beams=2))
    assert beams[0].score < 0
    (copied,) = Writer(loaded, "int8").write_ids([[3, 4, 5]], dataclasses.replace(options, draft=3))
    assert copied[0].ids == near.ids
