"""Every file in configs/: it resolves to its golden dump, fits together at full size, and trains at toy size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import pictures
from tests.jobs import golden, published
from vitvlm.core import config as config_lib
from vitvlm.core.paths import flatten
from vitvlm.data import operations, sources
from vitvlm.data.sources import prepared
from vitvlm.jobs import fields
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import TrainingSetup, setup
from vitvlm.training import sharding

IMAGENET_EXAMPLES, CLASSES = 1_281_167, 10
OF_LANGUAGE = ("captions", "image_gap", "perplexity", "questions")  # evaluators that look at no features


@pytest.mark.parametrize("path", golden.CONFIGS + golden.ABLATIONS + golden.EVALUATIONS)
def test_resolves_to_its_golden_dump(path):
    assert golden.dump(path) == golden.golden(path).read_text(), "wanted? then: python -m tests.jobs.golden"


def test_there_is_no_dump_without_a_config():
    expected = {golden.golden(path) for path in golden.CONFIGS + golden.ABLATIONS + golden.EVALUATIONS}
    assert set(golden.FOLDER.glob("*.json")) == expected


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Tokenizers and weights that configs name by a path that the reader makes."""
    published.link(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_data(monkeypatch):
    """No data set can be opened."""
    monkeypatch.setattr(sources, "open", None)


@pytest.mark.usefixtures("weights", "no_data")
@pytest.mark.parametrize("path", golden.CONFIGS)
def test_fits_together_at_full_size_without_data(path):
    """Shapes and shardings of the state, shapes of a step, optimizer rules and durations; no array is made."""
    for plain in golden.jobs(config_lib.plain(golden.load(path))):
        fits_together(with_classes(plain))


def fits_together(plain):
    model = ModelSetup.of(plain)
    training = TrainingSetup.of(plain, model, IMAGENET_EXAMPLES)
    assert all(len(row) == 1 for row in model.example_batch.values()) and training.state_shapes.params
    assert jax.tree.structure(training.state_shardings) == jax.tree.structure(training.state_shapes)
    training.optimizer()

    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, _, _ = jax.eval_shape(
        lambda v, b, r: model.task.loss(v, b, r, True), model.variable_shapes, dict(model.example_batch), key
    )
    assert loss.shape == () and loss.dtype == jnp.float32

    split = DataSetup.of(plain)
    assert pixels(split.train.ops) == pixels(split.eval.ops)
    for name, section in fields.read(fields.Evaluations, plain).evals.items():
        assert section.get("every") is None or training.clock.steps(section["every"], name) > 0
        of_language = section.get("type") in OF_LANGUAGE
        assert of_language or section.get("features", "features") in {"pixels", *model.task.predict_fns}
    assert training.clock.steps(training.checkpoint.every, "config.checkpoint.every") > 0


def with_classes(plain):
    """The config with names of classes, where it takes them from its data."""
    if plain["model"].get("num_classes") == "data":
        plain["classes"] = [f"class {place}" for place in range(CLASSES)]
    return plain


@pytest.mark.usefixtures("no_data")
def test_what_only_data_can_tell_is_an_error_without_them():
    plain = config_lib.plain(golden.load("configs/vit_fashion.py"))
    with pytest.raises(config_lib.ConfigError, match=r"^config\.model\.num_classes: 'data' counts the classes"):
        ModelSetup.of(plain)
    training = TrainingSetup.of(plain, ModelSetup.of(with_classes(plain)))
    assert training.state_shapes.opt_state
    with pytest.raises(config_lib.ConfigError, match=r"^config\.total: '.* epochs' counts epochs of data that are not"):
        training.optimizer()
    training = TrainingSetup.of({**plain, "total": "300 steps"}, training.model)
    assert training.clock.total_steps == 300


def test_a_mesh_of_chips_that_are_not_here_shards_the_state():
    plain = config_lib.plain(golden.load("configs/vit_imagenet.py")) | {"sharding": "fsdp"}
    plain["model"]["num_classes"] = 1000
    model = ModelSetup.of(plain, mesh=jax.sharding.AbstractMesh((1, 256), ("data", "fsdp")))
    training = TrainingSetup.of(plain, model)
    kernel = "blocks/mlp/up/kernel"
    for shapes, places in (
        (training.state_shapes.params, training.state_shardings.params),
        (model.stored_shapes["params"], jax.tree.map(lambda leaf: leaf.sharding, model.target["params"])),
    ):
        whole, placed = flatten(shapes)[kernel], flatten(places)[kernel]
        assert math.prod(placed.shard_shape(whole.shape)) * 256 == math.prod(whole.shape)


def test_a_mesh_that_would_cut_a_head_is_refused_before_anything_is_made():
    plain = config_lib.plain(golden.load("configs/vit_imagenet.py")) | {"sharding": "tensor"}
    plain["model"] |= {"num_classes": 1000, "variant": "S/16"}  # 6 heads
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "tensor"))
    with pytest.raises(
        config_lib.ConfigError, match=r"config\.sharding: .*: 6 heads of .* cannot be split over tensor"
    ):
        ModelSetup.of(plain, mesh=mesh)
    ModelSetup.of(plain, mesh=jax.sharding.AbstractMesh((4, 2), ("data", "tensor")))


@pytest.fixture
def fashion_mnist(tmp_path, monkeypatch):
    """Files like Debian's, with made-up pictures: the real ones are installed on few machines."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1000, 28, 28), np.uint8), np.arange(1000, dtype=np.uint8) % 10
    pictures.write_idx(tmp_path, images, labels, compress=False)
    monkeypatch.setattr(prepared, "DEBIAN_FASHION_MNIST", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.mark.usefixtures("fashion_mnist")
@pytest.mark.parametrize("path", golden.CONFIGS)
def test_takes_one_real_step_at_debug_size(path):
    for config in golden.jobs(config_lib.plain(golden.load(path, "debug"))):
        takes_a_step(config)


def takes_a_step(config):
    job = setup(config)
    assert evaluations.build(job.model, job.data, job.evals)
    state = train.first_state(job.training)
    before = jax.device_get(state.params)
    with job.data.batches() as batches:
        state, metrics = train.compiled_step(job.training)(state, sharding.put_batch(next(batches), job.model.mesh))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    moved = jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), before, state.params)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("path", ["configs/vit.py", "configs/mae.py"])
def test_takes_a_step_as_users_compile_it(path, monkeypatch):
    """With the compiler options of a user's machine, which the tests' flags turn off."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    test_takes_one_real_step_at_debug_size(path)


def pixels(ops: str) -> int | None:
    """Channels that the operations decode to, None without images; they must parse."""
    pipeline = operations.parse(ops)
    decode = (operation.positional[0] for operation in pipeline.operations if operation.function.name == "decode")
    return next(decode, None)
