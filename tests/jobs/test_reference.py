"""The reference of a config's fields: complete, of the code, in a page, in the help, and quick."""

import dataclasses
import resource
import subprocess
import sys

import pytest

from tests.docs.reference import PAGE
from tests.jobs import golden
from vitvlm import evaluation, models
from vitvlm.core import config as config_lib
from vitvlm.core import described
from vitvlm.jobs import fields, reference
from vitvlm.jobs.overrides import apply_overrides, written
from vitvlm.tasks import TASKS
from vitvlm.training import methods

SECONDS = 4  # of the processor, in which help and errors are there


def test_every_field_has_a_line():
    """A field's docstring describes it where it is declared ("Attributes:", "Fields:", "Args:")."""
    lacking = {part.title: [field.name for field in part.fields if not field.text] for part in reference.everything()}
    assert not {title: names for title, names in lacking.items() if names}


def test_nothing_is_left_out():
    titles = [part.title for part in reference.everything()]
    assert len(titles) == len(set(titles))
    for section, key, names in (
        ("config.task", "name", TASKS.names()),
        ("config.model", "name", models.names()),
        ("config.optimizer", "name", methods.METHODS),
        ("config.evals.NAME", "type", evaluation.names()),
    ):
        assert {f'{section}, {key}="{name}"' for name in names} <= set(titles)
    (top,) = [part for part in reference.everything() if part.title == "config"]
    assert {field.name for field in top.fields} == {field.name for field in dataclasses.fields(fields.Job)}


def test_models_list_the_fields_that_they_take():
    (mae,) = [part for part in reference.everything() if part.title == 'config.model, name="mae"']
    names = {field.name for field in mae.fields}
    assert {"variant", "mask_ratio", "decoder_width", "patch_size", "width", "positions"} <= names
    assert names.isdisjoint({"vit", "pool", "cls_token", "num_classes", "representation_size", "parent"})
    required = {field.name: 1 for field in mae.fields if field.required}
    built = models.build("mae", **{**required, "patch_size": 4, "width": 8, "heads": 2, "mlp_width": 8})
    assert built.vit.width == 8
    with pytest.raises(config_lib.ConfigError, match="no such field"):
        models.build("mae", **required, pool="gap")


def test_the_page_is_what_the_code_says():
    """`python -m tests.docs.reference` writes it again."""
    assert PAGE.read_text(encoding="utf-8") == reference.page()


@pytest.mark.parametrize("path", golden.CONFIGS)
def test_every_field_of_a_config_is_in_its_help(path):
    config = config_lib.plain(golden.load(path))
    text = reference.help_text(config)
    own = ("total", "batch_size", "seed", "data", "schedule", "checkpoint", "log", "optimizer")
    for field, _ in written(config):
        if field.split(".")[0] in own and field not in ("optimizer.name", "data.class_names"):
            assert f"--config.{field}=" in text, field


@pytest.mark.parametrize("path", golden.CONFIGS)
def test_a_config_is_what_its_printed_fields_set(path):
    """Each field is written as an override, and all of them make an equal config."""
    config = golden.load(path)
    again = golden.load(path)
    for name in list(again):
        del again[name]
    apply_overrides(again, written(config))
    assert config_lib.plain(again) == config_lib.plain(config)


def run(*arguments):
    """The script's exit status, output and errors, and the seconds of the processor that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "scripts/train.py", *arguments]
    done = subprocess.run(command, cwd=golden.ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return done.returncode, done.stdout, lines, seconds


def test_help_is_quick():
    status, text, _, seconds = run("--help")
    assert status == 0 and seconds < SECONDS
    assert text.startswith("Trains a job from a config file")
    for expected in ("--workdir", "--config.data.train.split", "--config.model.patch_size", 'type="knn"'):
        assert expected in text


def test_help_of_a_config_shows_its_values():
    status, text, _, seconds = run("--config=configs/vit.py:debug", "--config.model.width=36", "--help")
    assert status == 0 and seconds < SECONDS
    assert "--config.model.width=36  (int, required)" in text
    assert "--config.schedule.peak=0.001  (float, required) the highest rate" in text
    assert "--config.evals.test.within  ('head' | 'data', default 'head')" in text
    assert 'name="swin"' not in text


def test_the_config_is_printed_as_flags():
    status, text, _, seconds = run("--config=configs/vit.py:debug", "--config.model.width=36", "--print_config")
    assert status == 0 and seconds < SECONDS
    assert "--config.model.width=36\n" in text and "--config.total=4 steps\n" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--config=configs/vit.py:debg=3",), "error: config argument 'debg=3': no such argument; did you mean"),
        (("--config=configs/vit.py", "--wrkdir=x"), "error: --wrkdir: no such flag or config field; did you mean"),
        (("--config=configs/vit.py",), "error: --workdir: missing; give a folder, as --workdir=workdirs/mine"),
        (
            ("--config=configs/vit.py:debug", "--workdir=/nowhere/x", "--config.model.widht=3"),
            'error: model.widht: no such field; did you mean "width"?',
        ),
    ],
)
def test_errors_are_one_line_and_quick(arguments, error):
    status, _, lines, seconds = run(*arguments)
    assert status == 2 and seconds < SECONDS
    assert len(lines) == 1 and lines[0].startswith(error)


def test_descriptions_are_read_from_docstrings():
    text = """Summary.

    Some more. Fields, besides those of `Base`:
      size, side: of both; step: how far
        it goes: far.
      name: a name. kind: which of them.

    Returns nothing: really.
    """
    assert described.described(text) == {
        "size": "of both",
        "side": "of both",
        "step": "how far it goes: far.",
        "name": "a name",
        "kind": "which of them.",
    }
