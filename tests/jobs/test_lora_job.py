"""Jobs with `config.lora`: what trains, what a checkpoint holds, going on after a crash, and the weights afterwards."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from tests.jobs import golden
from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.jobs import convert
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.nn.lora import attach, is_adapter
from vitvlm.nn.stacking import stack_blocks
from vitvlm.pretrained import Pretrained
from vitvlm.training import sharding
from vitvlm.training.records import Record

LORA = {"rules": ((".*attention/(query|value)/kernel", {}), (".*mlp/up/kernel", {"dora": True})), "rank": 2, "alpha": 4}
BASE = dict(name="vit", width=16, depth=2, heads=2, mlp_width=24, patch_size=16, image_size=32, num_classes="data")
HEAD = (("head/.*", False), (".*", True))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Published weights, as it were: of the same ViT without a head."""
    folder = tmp_path_factory.mktemp("weights")
    model = models.build(**BASE | {"num_classes": 0, "scan": False})
    variables = model.init(jax.random.key(7), np.zeros((1, 32, 32, 3), np.float32))
    noise = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), variables)
    variables = jax.tree.map(jax.numpy.add, variables, noise)
    pretrained.save(Pretrained(model, variables, None, None, {}), folder)
    return folder


def a_config(weights, **changes):
    config = golden.load("configs/vit.py", "debug")
    config.model = BASE
    config.total, config.batch_size, config.seed = "4 steps", 4, 1
    config.data.train.split, config.data.eval.split = "train[:16]", "test[:8]"
    config.optimizer = dict(name="adamw", weight_decay=0.1, clip_norm=1.0)
    config.schedule = dict(name="constant", peak=1e-2)
    config.evals = dict(test=dict(type="classification"))
    config.checkpoint = dict(every="2 steps")
    config.init_from = dict(path=str(weights), rules=(("head/.*", None), (".*", r"\g<0>")))
    config.lora = LORA
    config.optimizer.freeze = HEAD
    with config.unlocked():
        for name, value in changes.items():
            config[name] = value
    return config


def images():
    return np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def step(config):
    job = setup(config)
    state = train.first_state(job.training)
    with job.data.batches() as batches:
        batch = sharding.put_batch(next(batches), job.model.mesh)
    return job.model, state, lambda state: train.compiled_step(job.training)(state, batch)


@pytest.mark.parametrize("frozen_dtype", [None, "int8", (("blocks/.*kernel", "nf4"), (".*", None))], ids=str)
@pytest.mark.parametrize("scan", [True, False])
def test_it_begins_as_the_base_and_only_adapters_and_the_head_move(weights, frozen_dtype, scan):
    if frozen_dtype == "int8":
        frozen_dtype = ((".*mlp/up/kernel", "int8"), (".*", None))
    elif frozen_dtype and not scan:
        frozen_dtype = ((r"blocks_\d+/.*kernel", "nf4"), (".*", None))
    job, state, stepped = step(a_config(weights, model=BASE | {"scan": scan}, frozen_dtype=frozen_dtype))
    trained = flatten(state.params)
    adapters = {path for path in trained if is_adapter(path)}
    assert trained.keys() - adapters == {"head/kernel", "head/bias"}
    places = ["blocks"] if scan else ["blocks_0", "blocks_1"]
    assert adapters == {
        f"lora/{place}/{name}/kernel/{part}"
        for place in places
        for name, parts in (("attention/query", "ab"), ("attention/value", "ab"), ("mlp/up", ["a", "b", "magnitude"]))
        for part in parts
    }
    plain = {name: tree for name, tree in attach(state.variables()["params"]).items() if name != "lora"}
    before = job.task.model.apply({"params": plain}, images()).logits
    base = {**{name: tree for name, tree in state.frozen.items() if name != "lora"}, "head": state.params["head"]}
    np.testing.assert_allclose(before, job.task.model.apply({"params": base}, images()).logits, rtol=1e-4, atol=1e-5)

    kept, held = jax.device_get((state.params, state.frozen))
    state, metrics = stepped(stepped(state)[0])  # the head begins with zeros, which send nothing back
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, held, jax.device_get(state.frozen))
    moved = {path for path, leaf in flatten(state.params).items() if np.any(leaf != flatten(kept)[path])}
    assert moved >= {path for path in trained if path.endswith(("/b", "/magnitude"))} | {"head/kernel"}
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * size + 4


def test_scanned_trains_as_looped(weights):
    """The adapters of scanned blocks draw as one array, so both begin from the looped one's."""
    changes = dict(frozen_dtype=None)
    _, looped, of_loop = step(a_config(weights, model=BASE | {"scan": False}, **changes))
    _, scanned, of_scan = step(a_config(weights, model=BASE | {"scan": True}, **changes))
    places = jax.tree.map(lambda leaf: leaf.sharding, scanned.params)
    scanned = scanned.replace(params=jax.device_put(stack_blocks(jax.device_get(looped.params)), places))
    (after, first), (again, second) = of_loop(looped), of_scan(scanned)
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(stack_blocks(after.params)), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_micro_batches_averages_and_dropout(weights):
    lora = {**LORA, "dropout": 0.3}
    config = a_config(weights, lora=lora, accumulate=2, ema_decay=0.5)
    _, state, stepped = step(config)
    other, metrics = stepped(state)
    assert np.isfinite(metrics["loss"])
    assert other.ema.keys() == other.params.keys()


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory):
    """A whole training, undisturbed, with averages and QLoRA."""
    folder = tmp_path_factory.mktemp("trained")
    config = trained_config(weights)
    train.train(config, folder)
    return folder


def trained_config(weights):
    frozen_dtype = (("blocks/.*kernel", "nf4"), (".*", None))
    return a_config(weights, frozen_dtype=frozen_dtype, ema_decay=0.9, lora={**LORA, "dropout": 0.2})


class Crash(RuntimeError):
    pass


def test_killed_and_started_again_it_ends_bit_for_bit_the_same(weights, trained, tmp_path, monkeypatch):
    compiled = train.compiled_step

    def crashing(training):
        step = compiled(training)

        def run(state, batch):
            if int(state.step) == 3:
                raise Crash
            return step(state, batch)

        return run

    monkeypatch.setattr(train, "compiled_step", crashing)
    with pytest.raises(Crash):
        train.train(trained_config(weights), tmp_path)
    monkeypatch.undo()
    train.train(trained_config(weights), tmp_path)
    training = setup(trained_config(weights)).training
    for a, b in zip(*(jax.tree.leaves(load_state(training, folder)) for folder in (trained, tmp_path)), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_checkpoints_hold_what_trains_and_the_base_once(trained):
    record = Record.read(epath.Path(trained) / "checkpoints" / "4" / "record" / "metadata")
    names = [name for name in record.arrays if not name.startswith("opt_state")]
    assert {name.split("/")[0] for name in names} == {"params", "ema", "step", "rng"}
    assert {name.split("/")[1] for name in names if "/" in name} == {"lora", "head"}
    assert len(list((trained / "checkpoints").glob("frozen-*"))) == 1


def test_afterwards_it_is_a_plain_model(trained, weights):
    """Merged: what the state with its averaged adapters gives, from the workdir and by evaluate.py."""
    job = setup(trained_config(weights))
    state = load_state(job.training, trained)
    expected = job.model.task.model.apply(state.variables(ema=True), images()).logits
    loaded = pretrained.load(trained)
    assert not any(is_adapter(path) for path in flatten(loaded.variables["params"]))
    np.testing.assert_allclose(loaded.model.apply(loaded.variables, images()).logits, expected, rtol=1e-4, atol=1e-5)
    (row,) = evaluate.evaluate(trained)
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert row.result.metrics["top1"] == [line["test/top1"] for line in logged if "test/top1" in line][-1]


def test_adapters_go_out_by_the_names_of_peft_and_come_back(weights, tmp_path):
    config = a_config(weights, optimizer=dict(name="adamw"), lora=dict(rules=((".*(query|out)/kernel", {}),), rank=2))
    train.train(config, tmp_path / "run")
    convert.convert(str(tmp_path / "run"), str(tmp_path / "adapter"), "peft")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = {name.split(".lora_")[0] for name in tensors}
    assert (
        names
        == {
            f"base_model.model.vit.encoder.layer.{layer}.attention.{name}"
            for layer in range(2)
            for name in ("attention.query", "output.dense")
        }
        or len(names) == 4
    )
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["r"] == 2 and described["base_model_name_or_path"] == str(weights)


def test_what_else_was_trained_is_not_left_out_in_silence(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"head/bias, head/kernel were trained besides|head/.* were trained besides"):
        convert.convert(str(trained), str(tmp_path / "adapter"), "peft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lora=dict(rules=((".*", {}),))), "is no matrix"),
        (dict(optimizer=dict(name="adamw", freeze=((".*", False),))), "has an adapter and trains itself: freeze it"),
        (dict(lora=dict(rules=((".*/kernel", {}),), ranks=3)), "ranks"),
        (dict(sharding=(("lora.*/(a|b)|[^l].*", "replicate"),)), "no rule covers 'lora/.*/magnitude'"),
    ],
)
def test_what_cannot_be_meant(weights, changes, message):
    with pytest.raises(ValueError, match=message):
        setup(a_config(weights, **changes))


def test_layers_decay_as_their_matrices(weights):
    config = a_config(weights, optimizer=dict(name="adamw", layer_decay=0.5))
    _, state, stepped = step(config)
    _, metrics = stepped(state)
    assert np.isfinite(metrics["update_norm"])
