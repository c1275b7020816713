"""Features of a frozen encoder on disk: a training with them is the one without, whatever is killed or damaged."""

import dataclasses
import functools
import json
import queue
import re
import threading

import jax
import numpy as np
import pytest

from tests.jobs import golden
from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.sources.scene_questions import SceneQuestions
from vitvlm.jobs import fields
from vitvlm.jobs.training import feature_cache, stages, train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.tasks.base import images_in_texts
from vitvlm.training.feature_store import FeatureStore
from vitvlm.training.gradients import make_gradients
from vitvlm.training.interrupts import Interrupted, Interrupts

FREEZE = (("image/.*", True), (".*", False))
ROWS, SCENES = 24, 6  # questions of the training, and the scenes that they are of
KINDS = {"shapes": {"file": "configs/prefix_vlm.py", "arg": "system=qwen2_vl,debug"}}


def a_config(path=None, dtype="float32", file="configs/llava.py", arg="debug", **changes):
    config = config_lib.plain(golden.load(file, arg))
    config["optimizer"]["freeze"] = FREEZE
    config["evals"], config["checkpoint"], config["total"] = {}, {"every": "2 steps"}, "3 steps"
    config["data"]["train"]["split"] = f"train[:{ROWS}]"
    config["data"]["max_unreadable_fraction"] = 0.9
    config["model"]["text"]["depth"] = 1
    cache = {} if path is None else {"feature_cache": {"path": str(path), "dtype": dtype}}
    return config | cache | changes


def with_ops(config, change):
    train_section = config["data"]["train"]
    return config | {"data": config["data"] | {"train": train_section | {"ops": change(train_section["ops"])}}}


def packed(config):
    return with_ops(config, lambda ops: ops + "|pack(160, images=3)")


@functools.cache
def a_job(kind="one"):
    """A job and its first state: of an image to each text, of packed rows, or of images of shapes of their own."""
    config = a_config("features", **KINDS.get(kind, {}))
    job = setup(packed(config) if kind == "packed" else config)
    return job, train.first_state(job.training)


def begin(path, kind="one", dtype="float32", said=None, job=None, state=None, interrupts=None):
    own = a_job(kind)
    section = fields.FeatureCache(str(path), dtype)
    say = print if said is None else said.append
    return feature_cache.begin(job or own[0], section, state or own[1], say, interrupts or Interrupts())


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["train/loss"], row["train/grad_norm"]) for row in rows if "train/loss" in row}


def files(path):
    return sorted(path.glob("*/features-*.npy"))


@pytest.fixture(scope="module", autouse=True)
def two_at_a_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "_BATCH", 2)
        yield


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    train.train(a_config(folder / "features"), folder / "workdir")
    return folder


def test_a_training_with_features_is_the_one_with_images(cached, tmp_path):
    train.train(a_config(), tmp_path)
    ours, theirs = losses(cached / "workdir"), losses(tmp_path)
    assert ours.keys() == theirs.keys() and len(ours) == 3
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-6)
    training = a_job()[0].training
    one, other = (flatten(load_state(training, each).params) for each in (cached / "workdir", tmp_path))
    for name, value in other.items():
        np.testing.assert_allclose(one[name], value, atol=2e-5, err_msg=name)  # of which Adam's first steps are 1e-3


class Killed(BaseException):
    pass


def test_a_job_that_is_killed_goes_on(cached, tmp_path, monkeypatch, capfd):
    """Among the images, and then among the steps: none is encoded twice, and the end is bit for bit the same."""
    add, compiled, wrote, killed = FeatureStore.add, train.compiled_step, [], []

    def deadly_add(self, rows):
        if wrote and not killed:
            killed.append("images")
            raise Killed
        wrote.append(len(rows))
        add(self, rows)

    def deadly_step(training):
        step = compiled(training)

        def run(state, batch):
            if len(killed) == 1 and int(state.step) == 2:
                killed.append("steps")
                raise Killed
            return step(state, batch)

        return run

    monkeypatch.setattr(feature_cache, "_FILE_BYTES", 1)
    monkeypatch.setattr(FeatureStore, "add", deadly_add)
    monkeypatch.setattr(train, "compiled_step", deadly_step)
    config, workdir = a_config(tmp_path / "features"), tmp_path / "workdir"
    for _ in range(2):
        with pytest.raises(Killed):
            train.train(config, workdir)
    train.train(config, workdir)
    assert killed == ["images", "steps"] and wrote == [2, 2, 2]
    assert capfd.readouterr().err.count(": found in") == 1
    assert losses(workdir) == losses(cached / "workdir")
    ours, theirs = (flatten(load_state(a_job()[0].training, each / "workdir").params) for each in (tmp_path, cached))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_what_is_damaged_is_named_and_computed_again(tmp_path):
    said = []
    whole = begin(tmp_path)
    features = whole.store[whole.rows["images"]]  # a copy of what files hold
    (file,), (table,) = files(tmp_path), tmp_path.glob("*/rows-*.npy")
    before, rows = file.read_bytes(), table.read_bytes()
    assert len(np.load(file)) == SCENES  # each image once, of however many questions
    for path, damaged in (
        (file, before[:-40] + bytes([before[-40] ^ 1]) + before[-39:]),
        (file, before[:1000]),
        (table, b""),
    ):
        path.write_bytes(damaged)
        again = begin(tmp_path, said=said)
        assert str(path) in said[0] and "damaged" in said[0] and "computed and kept" in said[-1]
        assert file.read_bytes() == before and table.read_bytes() == rows
        np.testing.assert_array_equal(again.store[again.rows["images"]], features)
        said.clear()
    begin(tmp_path, said=said)
    assert len(said) == 1 and "found in" in said[0]


def test_files_of_others_are_never_taken(tmp_path):
    """Features of another encoder, at the place of this one's: by name, a file among them, or the whole folder."""
    job, state = a_job()
    other = state.replace(frozen=jax.tree.map(lambda leaf: leaf + 1e-3, state.frozen))
    begin(tmp_path / "other", state=other)
    begin(tmp_path / "own")
    (theirs,), (file,) = files(tmp_path / "other"), files(tmp_path / "own")
    ours = file.read_bytes()
    file.unlink()
    theirs.rename(file.parent / theirs.name)
    said = []
    begin(tmp_path / "own", said=said)
    assert theirs.name in said[0] and "of other features" in said[0] and "computed and kept" in said[-1]
    assert [each.read_bytes() for each in files(tmp_path / "own")] == [ours]
    folder = file.parent
    (folder / "made_from.json").write_bytes((theirs.parent / "made_from.json").read_bytes())
    with pytest.raises(ConfigError, match=r"of other features \(parameters/image/.* differ\), copied or renamed"):
        begin(tmp_path / "own")


def test_another_encoder_has_features_of_its_own(tmp_path):
    job, state = a_job()
    said = []
    begin(tmp_path, said=said)
    assert "computed" in said[-1]
    moved = jax.tree.map(lambda leaf: leaf + 1e-3, state.params)  # all that trains: not the encoder
    begin(tmp_path, said=said, state=state.replace(params=moved))
    assert "found" in said[-1] and len(files(tmp_path)) == 1
    last = setup(a_config("features", model=job.config["model"] | {"features": (-1,)}))
    for differing, changed in (
        (
            r"parameters/image/.* and \d+ more",
            {"state": state.replace(frozen=jax.tree.map(lambda x: x * 1.5, state.frozen))},
        ),
        (r"model/features", {"job": last}),
    ):
        del said[:]
        begin(tmp_path, said=said, **changed)
        assert re.search(
            rf"features of this encoder are new here: {differing} differ from .*/made_from\.json", said[0]
        ), said
        assert "computed" in said[-1]
    assert len({path.parent for path in files(tmp_path)}) == 3


def test_other_pixels_have_features_of_their_own(tmp_path):
    """Those of operations that were changed; other rows with the same images share theirs."""
    job, _ = a_job()
    begin(tmp_path)
    said = []
    ops = job.data.train.ops.replace("'half'", "'imagenet'")
    for differing, encoded, change in (
        ("operations", SCENES, {"ops": ops}),
        ("rows, source", 0, {"split": "train[4:9]"}),
    ):
        data = dataclasses.replace(job.data, train=dataclasses.replace(job.data.train, **change), source=None).open()
        del said[:]
        kept = begin(tmp_path, said=said, job=dataclasses.replace(job, data=data))
        assert f"features of these data are new here: {differing} differ from" in said[0], said
        assert f" {encoded} images encoded" in said[-2] and "computed" in said[-1]
        assert len(kept.rows) == len(data.source)
    assert [len(np.load(file)) for file in files(tmp_path)] == [SCENES, SCENES]


def test_numbers_beyond_float16_and_interrupts(tmp_path):
    state = a_job()[1]
    kept = begin(tmp_path, dtype="float16")
    assert kept.store.dtype["values"].base == np.float16
    large = state.replace(frozen=jax.tree.map(lambda leaf: leaf * 1e6, state.frozen))
    with pytest.raises(ConfigError, match=r"dtype: features are not finite, or beyond what float16 holds"):
        begin(tmp_path, dtype="float16", state=large)
    asked = Interrupts()
    asked.received = "SIGTERM"
    with pytest.raises(Interrupted, match=r"SIGTERM: .* 0 images are kept"):
        begin(tmp_path, state=large, interrupts=asked)


def test_a_second_job_waits_for_the_first(tmp_path):
    said = queue.Queue()

    def second():
        with feature_cache._alone(tmp_path, said.put):
            said.put("alone")

    with feature_cache._alone(tmp_path, said.put):
        thread = threading.Thread(target=second)
        thread.start()
        assert "waiting" in said.get(timeout=60) and said.empty()
    thread.join(timeout=60)
    assert said.get(timeout=60) == "alone"


@pytest.mark.parametrize("kind", ["packed", "shapes"])
def test_loss_and_gradients(kind, tmp_path):
    """Of batches as a job makes them: those without pixels have the same texts, loss and gradients."""
    (job, state), features = a_job(kind), begin(tmp_path, kind)
    own = features.without_images(job)
    assert bool(own) == (kind == "packed")  # tiling needs the pixels
    with job.data.batches() as pixels, job.data.batches(**own) as blank:
        batch, found = next(pixels), features.exchanged(next(blank))
    assert {"image", "images"} & batch.keys() and not {"image", "images", "images_patch_mask"} & found.keys()
    for name in batch.keys() & found.keys():
        np.testing.assert_array_equal(batch[name], found[name], err_msg=name)
    assert len(batch.keys() - found.keys()) <= 3
    given = images_in_texts(batch)
    assert images_in_texts(found).values.shape[:2] == jax.tree.leaves(given)[0].shape[:2]
    task = job.model.task
    gradients = jax.jit(make_gradients(task.loss, whole_batch=task.whole_batch))
    numbers = [{k: v for k, v in each.items() if v.dtype.kind not in "OSU"} for each in (batch, found)]
    theirs, ours = (gradients(state.params, {}, each, jax.random.key(0), state.frozen) for each in numbers)
    np.testing.assert_allclose(ours[1]["loss"], theirs[1]["loss"], rtol=1e-6)
    theirs, ours = flatten(theirs[0]), flatten(ours[0])
    scale = max(np.abs(leaf).max() for leaf in theirs.values())
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=1e-6 * max(scale, 1), err_msg=path)
    assert any(path.startswith("connector/") and np.abs(leaf).max() > 1e-6 for path, leaf in theirs.items())


@pytest.mark.parametrize("kind", ["one", "packed"])
def test_rows_that_cannot_be_read(kind, tmp_path, monkeypatch):
    """They are counted and named as without the cache, and others of a packed row stand where they would."""
    read = SceneQuestions.__getitem__

    def unreadable(self, index):
        if index in (1, 6):
            raise UnreadableImage("cut off", self.ids[index])
        return read(self, index)

    monkeypatch.setattr(SceneQuestions, "__getitem__", unreadable)
    job, features = a_job(kind)[0], begin(tmp_path, kind)
    assert not features.rows["whole"].all()
    with job.data.batches() as pixels, job.data.batches(**features.without_images(job)) as blank:
        for _ in range(6):
            batch, found = next(pixels), next(blank)
            for name in ("text_tokens", "image_index", "example_mask", "index"):
                np.testing.assert_array_equal(batch[name], found[name], err_msg=name)
        assert pixels.bad == blank.bad and pixels.bad.count > 1


def test_stages_share_features(tmp_path, capfd):
    each = {"order": ("align", "instruct"), "instruct": {}}
    each["align"] = {"total": "1 steps", "optimizer": {"freeze": (("connector/.*", False), (".*", True))}}
    config = a_config(tmp_path / "features", stages=each)
    stages.train(config, tmp_path / "workdir", say=lambda text: None)
    said = capfd.readouterr().err
    assert said.count("computed and kept in") == said.count("found in") == 1
    assert len(files(tmp_path / "features")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: with_ops(c, lambda ops: ops.replace("|normalize", "|flip|normalize")), r"operation flip .* random"),
        (lambda c: c | {"optimizer": c["optimizer"] | {"freeze": None}}, r"'image/.*' trains"),
        (lambda c: c | {"model": c["model"] | {"image": c["model"]["image"] | {"dropout": 0.1}}}, "draws random"),
        (lambda c: c | {"model": c["model"] | {"image": c["model"]["image"] | {"drop_path": 0.1}}}, "draws random"),
        (lambda c: c | {"lora": {"rules": (("image/.*query/kernel", {}),)}}, r"'image/.*query/kernel' trains"),
        (lambda c: c | {"feature_cache": {"path": "x", "dtype": "int8"}}, r"dtype: 'int8'"),
        (lambda c: c | {"feature_cache": {"path": "gs://x"}}, "local disk"),
        (lambda c: c | {"feature_cache": {"paht": "x"}}, "paht"),
    ],
)
def test_what_is_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.feature_cache") as error:
        train.prepare(change(a_config(tmp_path)), tmp_path / "workdir")
    assert re.search(message, str(error.value)), error.value


def test_models_without_an_encoder_are_refused(tmp_path):
    config = a_config(tmp_path, arg="debug,connector=none")
    config["optimizer"]["freeze"] = None
    with pytest.raises(ConfigError, match="no image encoder"):
        feature_cache.check(setup(config))
    language = config_lib.plain(golden.load("configs/lm_emoji.py", "debug"))
    with pytest.raises(ConfigError, match="a Decoder"):
        feature_cache.check(setup(language | {"feature_cache": {"path": str(tmp_path)}}))
