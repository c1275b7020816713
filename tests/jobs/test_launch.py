"""Overrides on the command line: any field of any section, whether the config file names the section or not."""

import sys

import pytest
from absl import flags

from tests.jobs import golden
from vitvlm.core import config as config_lib
from vitvlm.jobs import fields, launch


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line as a script does, with flags of its own, and returns the config."""

    def parse(*arguments: str):
        monkeypatch.setattr(flags, "FLAGS", own := flags.FlagValues())
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        holder = launch.define_config(flag_values=own)
        launch.parse(sys.argv, own)
        return config_lib.plain(holder.value)

    return parse


OVERRIDES = {
    "mesh.data": -1,
    "mesh.fsdp": 4,
    "init_from.path": "workdirs/mae",
    "init_from.fields.heads": 3,
    "checkpoint.keep_last": 5,
    "log.tensorboard": True,
    "evals.mine.type": "knn",
    "data.workers": 2,
    "schedule.warmup": "5%",
    "ema_decay": 0.5,
    "sharding": "fsdp",
}


@pytest.mark.parametrize("path", golden.CONFIGS)
def test_any_field_of_any_section_can_be_set(parse, path):
    arguments = [f"--config.{field}={value}" for field, value in OVERRIDES.items()]
    config = parse(f"--config={golden.ROOT}/{path}", *arguments)
    for field, value in OVERRIDES.items():
        found = config
        for name in field.split("."):
            found = found[name]
        assert found == value, field
    for each in golden.jobs(config):
        assert config_lib.call(fields.Job, each, "config").mesh == {"data": -1, "fsdp": 4, "tensor": 1}


def test_every_section_of_a_job_can_be_opened(parse):
    sections = [
        "task",
        "model",
        "data",
        "optimizer",
        "schedule",
        "mesh",
        "init_from",
        "evals",
        "checkpoint",
        "log",
    ]
    config = parse(f"--config={golden.ROOT}/configs/vit.py", *(f"--config.{name}.new=1" for name in sections))
    assert all(config[name]["new"] == 1 for name in sections)


@pytest.mark.parametrize(
    ("given", "axes"),
    [
        ({}, {"data": -1, "fsdp": 1, "tensor": 1}),
        ({"fsdp": 4}, {"data": -1, "fsdp": 4, "tensor": 1}),
        ({"fsdp": -1}, {"data": 1, "fsdp": -1, "tensor": 1}),
        ({"data": 2, "tensor": 4}, {"data": 2, "fsdp": 1, "tensor": 4}),
    ],
)
def test_axes_that_are_not_named(parse, given, axes):
    config = parse(f"--config={golden.ROOT}/configs/vit.py", *(f"--config.mesh.{n}={v}" for n, v in given.items()))
    assert config_lib.call(fields.Job, config, "config").mesh == axes


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("model.patch_size", "(8, 4)", (8, 4)),
        ("model.drop_path", "1", 1.0),
        ("model.num_classes", "7", 7),
        ("model.num_classes", "'7'", "7"),
        ("optimizer.layer_decay", "0.75", 0.75),
        ("optimizer.clip_norm", "None", None),
        ("total", "300", 300),
        ("total", "3 epochs", "3 epochs"),
        ("mesh", "{'fsdp': 2}", {"fsdp": 2}),
        ("data.train.ops", "decode(3)|normalize('half')", "decode(3)|normalize('half')"),
        ("optimizer.lr_rules", "[('head/.*', 10.0), ('.*', 1.0)]", [("head/.*", 10.0), (".*", 1.0)]),
    ],
)
def test_values_of_every_kind(parse, field, text, value):
    found = parse(f"--config={golden.ROOT}/configs/vit.py", f"--config.{field}={text}")
    for name in field.split("."):
        found = found[name]
    assert found == value and type(found) is type(value)


def test_a_field_that_others_refer_to_takes_them_along(parse):
    config = parse(f"--config={golden.ROOT}/configs/vit.py", "--config.image_size=(32, 48)")
    assert config["model"]["image_size"] == (32, 48)
    assert "random_resized_crop((32, 48)," in config["data"]["train"]["ops"]


def test_flags_that_are_switched_and_sections_that_are_left_out(parse):
    config = parse(f"--config={golden.ROOT}/configs/vit.py", "--config.model.scan", "--config.evals=None")
    assert config["model"]["scan"] is True and "evals" not in config
    assert parse(f"--config={golden.ROOT}/configs/vit.py", "--noconfig.model.scan")["model"]["scan"] is False


def test_a_resnet_keeps_the_name_of_its_variant(parse):
    config = parse(
        f"--config={golden.ROOT}/configs/vit.py", "--config.model.variant='50'", "--config.model.variant=101"
    )
    assert config["model"]["variant"] == "101"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.batch_size.x=1", "--config.batch_size.x: config.batch_size is 64, which has no fields"),
        ("--config.data.train.split.x=1", "config.data.train.split is 'train', which has no fields"),
        ("--config.model.scan=maybe", "--config.model.scan=maybe: the field is False; write True or False"),
        ("--config.model=vit", "--config.model=vit: this is a section; set its fields (cls_token, "),
        ("--confg.seed=1", "--confg.seed: no such flag"),
    ],
)
def test_what_cannot_be_set_is_one_line(parse, capsys, argument, message):
    with pytest.raises(SystemExit) as stop:
        parse(f"--config={golden.ROOT}/configs/vit.py", argument)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_weights_do_not_say_is_given_by_name():
    texts = ["heads=6", "subtree=student", "image_size=(8, 12)", "norm_pix=False"]
    values = {"heads": 6, "subtree": "student", "image_size": (8, 12), "norm_pix": False}
    assert launch.named_values(texts) == values
    with pytest.raises(config_lib.ConfigError, match="--fields: 'heads' is not name=value"):
        launch.named_values(["heads"])
