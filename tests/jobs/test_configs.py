"""Every file in configs/: it resolves to its golden dump, fits together at full size, and trains at toy size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import pictures
from tests.jobs import golden, published
from vitvlm.core import config as config_lib
from vitvlm.core.durations import Clock
from vitvlm.core.paths import flatten
from vitvlm.data import operations, sources
from vitvlm.data.sources import prepared
from vitvlm.jobs import fields
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import build_task, setup, without_data
from vitvlm.nn.roles import roles_of
from vitvlm.tasks import Task
from vitvlm.training import freezing, optimizer, sharding

IMAGENET_EXAMPLES, CLASSES = 1_281_167, 10


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


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("path", golden.CONFIGS)
def test_fits_together_at_full_size(path):
    """Shapes of the state and of one step, optimizer rules, shardings and durations; no array is made."""
    plain = config_lib.plain(golden.load(path))
    if plain["model"].get("num_classes") == "data":
        plain["model"]["num_classes"] = CLASSES
    job = config_lib.call(fields.Job, plain, "config")
    data = config_lib.call(fields.Data, job.data, "config.data")
    channels = pixels(data.split(data.train, "config.data.train").ops)
    assert pixels(data.split(data.eval, "config.data.eval").ops) == channels
    batch = a_batch(job.batch_size, job.image_size, channels) | texts(job.batch_size, data.train["ops"])

    task: Task = build_task(job, tuple(map(str, range(CLASSES))))
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    clock = Clock(job.batch_size, IMAGENET_EXAMPLES)
    clock = Clock(job.batch_size, IMAGENET_EXAMPLES, clock.steps(job.total, "config.total"))
    roles = roles_of(task.model, flatten(variables["params"]))
    tx, _ = optimizer.build(job.optimizer, job.schedule, variables["params"], clock, roles)
    params, _ = freezing.split(variables["params"], optimizer.trainable(job.optimizer, variables["params"]))
    jax.eval_shape(tx.init, params)
    sharding.shardings(variables["params"], job.sharding, sharding.make_mesh(job.mesh))
    loss, _, _ = jax.eval_shape(lambda v, b, r: task.loss(v, b, r, True), variables, batch, jax.random.key(0))
    assert loss.shape == () and loss.dtype == jnp.float32
    for name, section in job.evals.items():
        for field in ("every",):
            if section.get(field) is not None:
                assert clock.steps(section[field], name) > 0
        assert section.get("features", "features") in {"pixels", *task.predict_fns}
    assert clock.steps(job.checkpoint.get("every", "10%"), "config.checkpoint.every") > 0


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("path", golden.CONFIGS)
def test_is_set_up_without_data(path, monkeypatch):
    """The state's shapes and shardings, whatever the number of devices of this machine; no data set is there."""
    monkeypatch.setattr(sources, "open", None)
    plain = config_lib.plain(golden.load(path))
    if plain["model"].get("num_classes") == "data":
        with pytest.raises(config_lib.ConfigError, match=r"^config\.model\.num_classes: 'data' counts the classes"):
            without_data(plain)
        plain["classes"] = [f"class {place}" for place in range(CLASSES)]
    job = without_data(plain)
    assert job.state_shapes.params and job.example_batch["image"].shape[0] == 1
    assert jax.tree.structure(job.state_shardings) == jax.tree.structure(job.state_shapes)


def test_a_mesh_of_chips_that_are_not_here_shards_the_state():
    plain = config_lib.plain(golden.load("configs/vit_imagenet.py")) | {"sharding": "fsdp"}
    plain["model"]["num_classes"] = 1000
    job = without_data(plain, jax.sharding.AbstractMesh((1, 256), ("data", "fsdp")))
    kernel = "blocks/mlp/up/kernel"
    whole, placed = flatten(job.state_shapes.params)[kernel], flatten(job.state_shardings.params)[kernel]
    assert math.prod(placed.shard_shape(whole.shape)) * 256 == math.prod(whole.shape)


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
    config = golden.load(path, "debug")
    job = setup(config)
    assert evaluations.build(job, job.job.evals)
    state = train.first_state(job)
    before = jax.device_get(state.params)
    with train.open_batches(job) as batches:
        state, metrics = train.compiled_step(job)(state, sharding.put_batch(next(batches), job.mesh))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    moved = jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), before, state.params)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("path", ["configs/vit.py", "configs/mae.py"])
def test_takes_a_step_as_users_compile_it(path, monkeypatch):
    """With the compiler options of a user's machine, which the tests' flags turn off."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    test_takes_one_real_step_at_debug_size(path)


def pixels(ops: str) -> int:
    """Channels that the operations decode to; they must parse."""
    pipeline = operations.parse(ops)
    decode = next(operation for operation in pipeline.operations if operation.function.name == "decode")
    return decode.positional[0]


def texts(size: int, ops: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Tokens, if the operations make some."""
    tokenizer = operations.text.tokenizer_of(operations.parse(ops))
    shape = (size, tokenizer.length) if tokenizer else ()
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("text_tokens", "text_mask") if tokenizer}


def a_batch(size: int, image: int, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {
        "image": ((size, image, image, channels), jnp.float32),
        "label": ((size,), jnp.int32),
        "example_mask": ((size,), jnp.float32),
        "index": ((size,), jnp.int32),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
