"""A whole job at toy size: train, evaluate, fine-tune, and the mistakes that a user can make."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.jobs import golden
from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.data.errors import DataError
from vitvlm.evaluation import Result
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.training import lock, resume, writers
from vitvlm.training.workdir import WorkdirError, read_config

CLASSES = ("blob", "cross", "stripe")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 3 classes with 12 images each; one file is damaged."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(12):
            pixels = rng.integers(0, 60, (20, 24, 3), np.uint8) + np.uint8(60 * label)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    damaged = root / "cross" / "05.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


def a_config(name: str, images, argument: str = ""):
    config = golden.load(f"configs/{name}.py", f"debug,source=folder:{images}{argument}")
    config.data.max_unreadable_fraction = 0.2
    config.data.train.split, config.data.eval.split = "train", "test"
    return config


@pytest.fixture(scope="module")
def autoencoder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder") / "workdir"
    return folder, train.train(a_config("mae", images), folder)


@pytest.fixture(scope="module")
def classifier(images, autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "workdir"
    return folder, train.train(a_config("vit", images, f",init={autoencoder[0]}"), folder)


def test_a_workdir_holds_all_that_a_job_leaves(classifier):
    folder, metrics = classifier
    assert read_config(folder)["model"]["num_classes"] == len(CLASSES)
    rows = writers.read(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert rows[-1]["test/top1"] == metrics["test/top1"]
    assert Image.open(folder / "curves.png").width > 800
    assert load_state(setup(read_config(folder)).training, folder).step == 4


def test_a_finished_job_run_again_does_nothing_and_says_the_same(classifier):
    folder, metrics = classifier
    before = (folder / "metrics.jsonl").read_bytes()
    assert train.train(read_config(folder), folder) == metrics
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_workdir_that_another_job_holds_is_refused_unless_forced(classifier):
    folder, metrics = classifier
    config = read_config(folder)
    with lock.hold(folder) as held:
        with pytest.raises(WorkdirError, match=rf"is in use by process {os.getpid()} on .*--force"):
            train.train(config, folder)
        assert evaluate.evaluate(folder, ["test"]), "beside a training"
        assert train.train(config, folder, force=True) == metrics
        with pytest.raises(WorkdirError, match=r"its lock.* was (broken by|removed)"):
            held.check()
    with lock.hold(folder / "evaluations"), pytest.raises(WorkdirError, match="is in use by process"):
        evaluate.evaluate(folder, ["test"])


def test_data_that_changed_are_gone_on_with_only_on_request(images, classifier, tmp_path):
    folder, metrics = shutil.copytree(classifier[0], tmp_path / "workdir"), classifier[1]
    config, file = read_config(folder), images / "cross" / "03.png"
    before = file.stat()
    os.utime(file, (1, 1))
    try:
        with pytest.raises(
            DataError, match=r"1 file has changed, though not in size: cross/03\.png.*accept_changed_data"
        ):
            train.train(config, folder)
        assert train.train(config, folder, accept_changed_data=True) == metrics
        said = writers.read(folder / "metrics.jsonl")[-1]
        changes = (
            "the training data are not those of the checkpoint: 1 file has changed, though not in size: cross/03.png"
        )
        assert said["step"] == 4 and said["data/changed"].startswith(changes)
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_another_config_in_the_same_workdir_is_an_error_that_names_the_field(classifier):
    folder, _ = classifier
    with pytest.raises(ConfigError, match=r"batch_size: 8 before, 4 now"):
        train.train(read_config(folder) | {"batch_size": 4}, folder)


def test_a_workdir_is_claimed_with_its_first_step(images, tmp_path):
    """The error advises another max_unreadable_fraction: a job of no step must not stand in its way, nor any other."""
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    for file in sorted((broken / "cross").iterdir())[:8]:
        file.write_bytes(file.read_bytes()[:200])
    config = a_config("vit", broken)
    config.data.max_unreadable_fraction, config.evals, config.checkpoint.best = 0.0, {}, None
    with pytest.raises(DataError, match="raise max_unreadable_fraction"):
        train.train(config, tmp_path / "workdir")
    assert not (tmp_path / "workdir" / "config.json").exists()
    config.data.max_unreadable_fraction, config.seed = 1.0, 7
    train.train(config, tmp_path / "workdir")
    assert read_config(tmp_path / "workdir")["seed"] == 7
    config.data.max_unreadable_fraction = 0.9
    train.train(config, tmp_path / "workdir")
    assert read_config(tmp_path / "workdir")["data"]["max_unreadable_fraction"] == 0.9


@pytest.mark.parametrize("best", ["tset/top1", "top1"])
def test_the_best_metric_is_of_an_evaluation(images, tmp_path, best):
    config = a_config("vit", images)
    config.checkpoint.best = best
    with pytest.raises(ConfigError, match=rf"config\.checkpoint\.best: '{best}' is not a metric of an evaluation"):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("best", ["test/mAP", "test/top5", "test/topp1"])
def test_the_best_metric_is_one_that_the_evaluation_gives(images, tmp_path, best):
    """Known before the first step, not after the first evaluation; three classes have no top 5."""
    config = a_config("vit", images)
    config.checkpoint.best = best
    message = rf"config\.checkpoint\.best: '{best}' is not a metric of that evaluation, a classification; .*test/top1"
    with pytest.raises(ConfigError, match=message):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_first_line_says_which_weights_a_training_starts_from(images, autoencoder, classifier, capsys):
    job = setup(read_config(classifier[0]))
    said = train.describe(job, resume.Start(None))
    assert re.search(rf"; from the parameters of {autoencoder[0]}; fresh are 2 of \d+ arrays \(head\)$", said), said
    train.train(read_config(classifier[0]), classifier[0])
    assert "at its end, checkpoint 4: no step is left" in " ".join(capsys.readouterr().err.split())


def test_fine_tuning_starts_from_the_encoder_and_a_fresh_head(images, autoencoder, classifier):
    folder, _ = autoencoder
    source = flatten(load_state(setup(read_config(folder)).training, folder).params)
    start = flatten(train.first_state(setup(read_config(classifier[0])).training).params)
    assert {"head/kernel", "head/bias"} == set(start) - {path.removeprefix("vit/") for path in source}
    for path, value in start.items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(value, source[f"vit/{path}"])


@pytest.fixture(scope="module")
def resnet(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet") / "workdir"
    model = {"name": "resnet", "num_classes": "data", "widths": (8,), "depths": (1,), "layer": "basic", "stem_width": 8}
    config = a_config("vit", images).to_dict() | {"model": model, "accumulate": 2, "ema_decay": 0.9}
    return folder, train.train(config, folder)


def test_a_resnet_is_trained_saved_and_evaluated_with_its_batch_statistics(resnet):
    folder, metrics = resnet
    state = load_state(setup(read_config(folder)).training, folder)
    for path, value in flatten(state.collections["batch_stats"]).items():
        assert np.abs(value - path.endswith("var")).max() > 1e-3, path  # not as they start
    (row,) = evaluate.evaluate(folder, ["test"])
    assert row.result.metrics["top1"] == pytest.approx(metrics["test/top1"], rel=1e-6)


def test_a_workdir_is_loaded_like_weights_from_elsewhere(resnet):
    folder, _ = resnet
    job = setup(read_config(folder))
    state = load_state(job.training, folder)
    loaded = pretrained.load(folder)  # its averaged parameters, for there are such
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["batch_stats"], state.collections["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], state.variables(ema=True)["params"])
    plain = pretrained.load(folder, ema=False)
    jax.tree.map(np.testing.assert_array_equal, plain.variables["params"], state.params)
    assert loaded.model == job.model.task.model.clone(widths=(8,), depths=(1,))
    assert loaded.preprocessing == job.data.eval.ops
    with pytest.raises(pretrained.WeightsError, match="no checkpoint of step 12345"):
        pretrained.load(folder, step=12345)


def test_a_workdir_of_an_autoencoder_scanned_or_not(autoencoder):
    folder, _ = autoencoder
    looped, scanned = (pretrained.load(folder, scan=scan) for scan in (False, True))
    assert "blocks_0" in looped.variables["params"]["vit"] and "blocks" in scanned.variables["params"]["vit"]
    with pytest.raises(pretrained.WeightsError, match="holds no averaged parameters"):
        pretrained.load(folder, ema=True)


def test_fine_tuning_takes_the_batch_statistics_too(resnet):
    folder, _ = resnet
    rules = (("head/.*", None), ("(.*)", r"\1"))
    init_from = {"path": str(folder), "rules": rules, "ignore": ("head/.*",)}
    start = train.first_state(setup(read_config(folder) | {"init_from": init_from}).training)
    trained = load_state(setup(read_config(folder)).training, folder)
    jax.tree.map(np.testing.assert_array_equal, start.collections, trained.collections)
    np.testing.assert_array_equal(start.params["stem"]["conv"]["kernel"], trained.params["stem"]["conv"]["kernel"])
    assert not np.array_equal(start.params["head"]["kernel"], trained.params["head"]["kernel"])


def test_fine_tuning_starts_from_a_hugging_face_folder_just_the_same(images, autoencoder, classifier, tmp_path):
    folder, _ = autoencoder
    job = setup(read_config(folder))
    params = load_state(job.training, folder).params
    pretrained.save(pretrained.Pretrained(job.model.task.model, {"params": params}, None, None, {}), tmp_path)
    start = train.first_state(setup(a_config("vit", images, f",init={tmp_path}")).training).params
    expected = train.first_state(setup(read_config(classifier[0])).training).params
    jax.tree.map(np.testing.assert_array_equal, start, expected)
    config = a_config("vit", images, f",init={tmp_path}")
    config.init_from.step = 3
    with pytest.raises(ConfigError, match="is not a workdir: it has no step and no ema"):
        train.first_state(setup(config).training)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"config\.init_from\.path: .*no whole safetensors file"):
        train.first_state(setup(a_config("vit", images, f",init={tmp_path}")).training)


def test_init_from_a_folder_without_a_training_is_an_error(images, tmp_path):
    job = setup(a_config("vit", images, f",init={tmp_path}"))
    with pytest.raises(ConfigError, match=r"config\.init_from\.path: .*neither the workdir of a training nor weights"):
        train.first_state(job.training)


@pytest.mark.parametrize(
    ("folders", "shown"),
    [
        (["runs/q/mae", "runs/q/scratch"], ["mae", "scratch"]),
        (["/a/x", "b"], ["/a/x", "b"]),
        (["a", "a/b"], [".", "b"]),
    ],
)
def test_a_table_names_workdirs_by_what_differs(folders, shown):
    row = evaluate.Row("test", 3, Result({"top1": 0.5}, "protocol"))
    table, *_ = evaluate.table({folder: [row] for folder in folders}).renderables
    assert list(table.columns[0].cells) == shown


def test_evaluate_repeats_the_training_and_adds_other_evaluators(classifier):
    folder, metrics = classifier
    rows = {row.name: row.result for row in evaluate.evaluate(folder, ["test", "linear_probe_logistic", "features"])}
    for name, value in rows["test"].metrics.items():
        assert metrics[f"test/{name}"] == pytest.approx(value, rel=1e-6)
    results = json.loads((evaluate.results_folder(folder, 4) / "results.json").read_text())
    assert set(results) == {"test", "linear_probe_logistic", "features"}
    for name, result in rows.items():
        assert results[name] == {"protocol": result.protocol, "metrics": result.metrics}


def test_evaluate_on_other_data_that_are_too_few_for_the_trainings_length(classifier, tmp_path):
    """Its length counts epochs of data that an evaluation may have replaced; other operations are said."""
    few = tmp_path / "few"
    for name in CLASSES:
        (few / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32), (80 * i, 9, 9)).save(few / name / f"{i}.png")
    config = golden.load("configs/vit.py", f"source=folder:{few}")  # at 64 px, and batches of 64
    del config.evals
    (row,) = evaluate.evaluate(classifier[0], ["classification"], config)
    own = read_config(classifier[0])["data"]["eval"]["ops"]
    assert f"images prepared by config.data.eval.ops, {config.data.eval.ops!r}, not by the training's own, {own!r}" in (
        row.result.protocol
    )
    written = json.loads((evaluate.results_folder(classifier[0], 4) / "classification" / "result.json").read_text())
    assert written["protocol"] == row.result.protocol


def test_single_fields_of_an_evaluation_are_changed_without_a_config(classifier):
    (row,) = evaluate.evaluate(classifier[0], ["knn"], changes={"evals": {"knn": {"ks": (1, 5)}}})
    assert "k in (1, 5)" in row.result.protocol and "images prepared by" not in row.result.protocol
    (row,) = evaluate.evaluate(classifier[0], ["test"], changes={"data": {"eval": {"split": "train"}}})
    assert row.result.metrics["n"] == 28  # of 29: one is damaged
    with pytest.raises(ConfigError, match=r"--config\.seed: an evaluation takes fields of evals, data, batch_size"):
        evaluate.evaluate(classifier[0], ["knn"], changes={"seed": 1})


def test_the_damaged_image_is_counted_and_named_in_the_evaluation(classifier, autoencoder):
    folder, _ = autoencoder
    rows = evaluate.evaluate(folder, ["reconstruction"])
    assert rows[0].result.metrics["n"] < 16  # never padding, never the damaged file


def test_an_unknown_evaluation_names_the_nearest(classifier):
    with pytest.raises(ConfigError, match="no evaluation 'knnn'; did you mean \"knn\""):
        evaluate.evaluate(classifier[0], ["knnn"])


def test_evaluating_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(WorkdirError, match="not the workdir of a training"):
        evaluate.evaluate(tmp_path)


def test_a_head_of_another_size_than_the_data(images):
    config = a_config("vit", images).to_dict()
    config["model"]["num_classes"] = 7
    with pytest.raises(ConfigError, match=r"config\.model\.num_classes: 7, but .* has 3 classes; set it to 3"):
        setup(config)


def test_a_patch_that_does_not_divide_the_image_names_both(images):
    config = a_config("vit", images)
    config.model.patch_size = 7
    with pytest.raises(ConfigError, match=r"32x32 is not divisible by patch 7x7"):
        setup(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sed": 1}, r'config\.sed: no such field; did you mean "seed"'),
        ({"total": "0 steps"}, r"config\.total: .* less than one step"),
        ({"sharding": "fdsp"}, r'config\.sharding: no preset \'fdsp\'; did you mean "fsdp"'),
        ({"mesh": {"data": 3}}, r"config\.mesh: .* devices"),
        ({"log": {"evry": 1}}, r'config\.log\.evry: no such field; did you mean "every"'),
    ],
)
def test_mistakes_are_found_before_anything_compiles(images, changes, message):
    config = a_config("vit", images).to_dict() | changes
    with pytest.raises(ConfigError, match=message):
        setup(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/vit.py:debug", "--config.model.pach_size=4"], 'did you mean "patch_size"?'),
        (["--config=configs/vit.py:debug", "--confg.seed=4"], "no such flag or config field"),
        (["--config=configs/vot.py"], "configs/vot.py"),
        (["--config=configs/vit.py:epoch=3"], 'did you mean "epochs"?'),
        (["--config=configs/vit.py:folder:/nowhere"], "/nowhere"),
    ],
)
def test_the_command_line_answers_mistakes_with_one_line(arguments, message, tmp_path):
    command = [sys.executable, "scripts/train.py", f"--workdir={tmp_path / 'workdir'}", *arguments]
    done = subprocess.run(command, cwd=golden.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr
