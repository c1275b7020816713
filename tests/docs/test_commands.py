"""Every command and every Python example of README.md and docs/ runs, at `:debug` size.

A command runs in a folder of its own. The workdirs that it reads are made by the command of a page that trains them.
"""

import functools
import importlib.metadata
import itertools
import multiprocessing
import os
import pathlib
import re
import runpy
import shlex
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.data import pictures
from tests.docs import pages
from tests.jobs import published
from tests.jobs.tiny_language_model import language_model
from vitvlm import models, pretrained
from vitvlm.core import config as config_lib
from vitvlm.data.sources import stamps
from vitvlm.jobs import fields
from vitvlm.jobs.overrides import apply_overrides, take_overrides
from vitvlm.training import sharding

# Measurements of minutes, or of a compiler that is not installed: their flags are parsed, and tests/jobs measures.
MEASURED = (
    *("benchmark.py", "benchmark_input.py", "benchmark_loading.py", "benchmark_tpu.py", "benchmark_generation.py"),
    *("benchmark_packing.py", "benchmark_vlm.py", "fuzz.py"),
    *("adapting_memory.py", "frozen_memory.py", "loss_memory.py", "blind_captions.py", "check_language_models.py"),
)
OWN = pages.OWN_WORKDIR
SETTING = re.compile("JAX_NUM_CPU_DEVICES=[0-9]+")  # of the environment; before a command
# What a page tells the reader to install; nothing here can tell whether it would.
INSTALLED = ("apt-get install dataset-fashion-mnist", "pip install --no-deps open-clip-torch")

COMMANDS = {
    f"{page.name}-{number}": command
    for page in pages.PAGES
    for number, command in enumerate(dict.fromkeys(pages.commands(page)))
}
QUICKSTART = [
    line.replace('"$workdir/', '"workdirs/quickstart/').replace(",$workdir/", ",workdirs/quickstart/")
    for line in (pages.ROOT / "scripts" / "quickstart.sh").read_text().splitlines()
    if line.startswith("python scripts/")
]
TRAINED = {
    found[1].strip('"'): command
    for command in [*COMMANDS.values(), *QUICKSTART]
    if "scripts/train.py" in command and (found := re.search(r"--workdir=(\S+)", command))
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_pages(name, run):
    run(COMMANDS[name])


def test_the_quick_start(run):
    assert len(QUICKSTART) == 3
    for command in QUICKSTART:
        run(command)


@pytest.mark.parametrize("page", [page for page in pages.PAGES if pages.examples(page)], ids=lambda page: page.name)
def test_the_python_of_a_page(page, place, run, monkeypatch):
    monkeypatch.chdir(place)
    (place / "workdirs").mkdir(exist_ok=True)
    names = {"images": np.zeros((1, 16, 16, 3), np.float32), "config": ConfigDict()}
    for example in pages.examples(page):
        for workdir in pages.workdirs_read([example]):
            workdir = "/".join(workdir.split("/")[:2])
            for command in COMMANDS.values():
                if "evaluate.py" in command and f"--workdir={workdir} " in f"{command} ":
                    run(command)
            if not (place / workdir).exists():
                (place / workdir).symlink_to(run(TRAINED[workdir]) / OWN)
            done = max(path for path in (place / workdir / "evaluations").iterdir() if path.is_dir())
            example = re.sub(r"evaluations/\d{8}/", f"evaluations/{done.name}/", example)
        exec(compile(example, str(page), "exec"), names)


def test_overrides_that_a_page_names_fit_every_config():
    """Inline code that is nothing but overrides, such as the mesh over eight devices."""
    named = [
        text.split()
        for page in pages.PAGES
        for kind, text in pages.parts(page.read_text(encoding="utf-8"))
        if kind == "inline" and text.startswith("--config.") and all("=" in word for word in text.split())
    ]
    assert any("--config.mesh.fsdp=4" in words for words in named)
    for words in named:
        config = pages.load_config("configs/vit.py", "debug")
        rest, overrides = take_overrides([word.replace("…", "1") for word in words])
        assert rest == []
        apply_overrides(config, overrides)
        job = config_lib.call(fields.Job, config_lib.plain(config), "config")
        if any(path.startswith("mesh.") for path, _ in overrides):
            assert sharding.make_mesh(job.mesh, devices=jax.devices("cpu") * 8).size == 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages name by a placeholder: images, captions and weights."""
    root = tmp_path_factory.mktemp("pages")
    for name in ("scripts", "configs", "tests"):
        (root / name).symlink_to(pages.ROOT / name)
    pictures.folder(root / "PATH", {"cat": 150, "dog": 150}, size=(24, 24))
    (root / "IMAGES").symlink_to(root / "PATH")
    (root / "image.png").write_bytes(pictures.encoded(pictures.pattern(40, 30)))
    (root / "questions.jsonl").write_text('{"prompt": "is it red?", "image": "image.png"}\n{"prompt": "red"}\n')
    (root / "captions.txt").write_text("".join(f"a picture of {n} things\n" for n in range(200)))
    published.link(root)
    (root / "vit_s_focus.onnx").symlink_to(root / "weights" / "vit_s_focus.onnx")
    for category, count in (("animals", 6), ("food", 6), ("vehicles", 6)):
        (root / "stamps" / category).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 36, 4), np.uint8)
            (root / "stamps" / category / f"photo{i}.png").write_bytes(pictures.encoded(pixels))
            (root / "stamps" / category / f"photo{i}.txt").write_text(f"One of the {category}, number {i}.\n")
    language_model(root / "path" / "to" / "language_model")
    vit = models.build("vit", num_classes=2, width=16, depth=2, heads=2, mlp_width=24, patch_size=8, image_size=16)
    variables = vit.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    loaded = pretrained.Pretrained(vit, variables, "decode(3)|resize(16)|normalize('half')", None, {})
    pretrained.save(loaded, root / "path" / "to" / "vit-base-patch16-224")
    return root


@pytest.fixture(scope="module")
def run(place):
    """Runs a command of the pages as a user would, in a process of its own."""
    processes = multiprocessing.get_context("forkserver")  # it imports once, for all commands
    processes.set_forkserver_preload(
        ["vitvlm.jobs.training.train", "vitvlm.jobs.ablate", "vitvlm.jobs.evaluation.weights"]
    )

    @functools.cache
    def ran(words: tuple[str, ...]) -> pathlib.Path:
        """The folder in which `python WORDS` ran; equal words run once."""
        folder = place / f"run{len(list(place.glob('run*')))}"
        (folder / "workdirs").mkdir(parents=True)
        for found in place.iterdir():
            if not found.name.startswith("run") and found.name != "workdirs":  # of pages, whose Python has run
                (folder / found.name).symlink_to(found)
        for workdir in pages.workdirs_read(words):
            assert workdir in TRAINED, f"{words} read {workdir}, which no command of the pages trains"
            (folder / workdir).parent.mkdir(parents=True, exist_ok=True)
            (folder / workdir).symlink_to(run(TRAINED[workdir]) / OWN)
        log = folder / "log.txt"
        child = processes.Process(target=_main, args=(list(words), folder, log))
        child.start()
        child.join()
        assert child.exitcode == 0, f"{' '.join(words)}\n{log.read_text()[-4000:]}"
        if "scripts/ablate.py" in words:  # which ends well if some of its variants do
            assert "variants failed" not in log.read_text(), log.read_text()[-4000:]
        return folder

    def run(command: str) -> pathlib.Path | None:
        program, *rest = itertools.dropwhile(SETTING.fullmatch, shlex.split(command, comments=True))
        if command.split("  #")[0].strip() in INSTALLED:
            return None
        if program == "pip":
            (extra,) = re.findall(r"\[(\w+)\]", command)
            assert extra in importlib.metadata.metadata("vitvlm").get_all("Provides-Extra")
            return None
        if program in ("bash", "pytest"):
            assert all((pages.ROOT / path).exists() for path in rest)
            return None
        if rest[0] == "-m":  # measurements of ours, and the golden configs
            assert (pages.ROOT / rest[1].replace(".", "/")).with_suffix(".py").exists()
            return None
        assert program == "python", f"nobody knows how to run {command!r} here"
        return ran(tuple(pages.at_debug_size(rest)))

    return run


def _main(arguments: list[str], folder: pathlib.Path, log: pathlib.Path) -> None:
    """`python ARGUMENTS` in a folder; what it prints goes to the log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    stamps.DEBIAN_STAMPS = folder / "stamps"
    if arguments[0] == "-c":
        exec(arguments[1], {"__name__": "__main__"})
        return
    sys.argv = arguments
    if pathlib.Path(arguments[0]).name in MEASURED:
        from vitvlm.jobs import launch

        runpy.run_path(arguments[0], run_name="flags")
        launch.parse(sys.argv)
    else:
        runpy.run_path(arguments[0], run_name="__main__")
