"""A folder with forty odd things is trained on by the command: its start line accounts for every file."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data import pictures
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.prepare.job import prepare
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup

ROOT = Path(__file__).parents[2]
PNG = [pictures.encoded(pictures.pattern(20, 24, seed=i)) for i in range(8)]


def odd_folder(root: Path) -> tuple[int, int, int]:
    """Kinds of things that people's folders hold, 16 plain images among them.

    Returns how many files are images that can be read, how many are none by some rule, and how many cannot be read.
    """
    used, skipped, unreadable = [], [], []

    def put(kind, name, content=None):
        path = os.path.join(os.fsencode(root), name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(PNG[len(used) % len(PNG)] if content is None else content)
        kind.append(name)

    def link(kind, name, target):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
        kind.append(name)

    for split in ("Training", "Testing"):
        for name in ("cat", "dog"):
            for i in range(8 if split == "Training" else 4):
                put(used, f"{split}/{name}/{i}.png")
    put(used, b"Training/cat/caf\xe9.png")  # names are bytes
    put(used, b"Training/dog/\xff\xfe.JPG", pictures.encoded(pictures.pattern(20, 24), "JPEG"))
    put(used, b"Testing/cat/na\xefve.png")
    put(used, "Training/dog/日本語.png")
    put(used, "Training/cat/A.png")
    put(used, "Training/cat/a.PNG")
    put(used, "Training/dog/two\nlines.png")
    put(used, "Training/dog/holiday.jpg/0.png")
    put(used, "Training/dog/2019/summer/0.png")
    put(skipped, "Training/cat/.ipynb_checkpoints/0-checkpoint.png")
    put(skipped, "Training/dog/2019/.thumbnails/0.png")
    put(skipped, "Training/cat/._0.png")
    put(skipped, "Training/cat/.DS_Store", b"x")
    put(skipped, ".DS_Store", b"x")
    put(skipped, ".git/HEAD", b"x")
    put(skipped, "__MACOSX/Training/cat/0.png")
    put(skipped, "Testing/dog/__MACOSX/0.png")
    put(skipped, "Training/dog/@eaDir/0.png/SYNO.jpg")
    put(skipped, "Training/dog/Thumbs.db", b"x")
    put(skipped, "Training/desktop.ini", b"x")
    put(skipped, "Training/cat/phone.heic", b"x")
    put(skipped, "Training/cat/phone.HEIC", b"x")
    put(skipped, "Testing/cat/web.avif", b"x")
    put(skipped, "README.txt", b"x")
    put(skipped, "Training/labels.csv", b"x")
    put(skipped, "Training/dog/LICENSE", b"x")
    put(skipped, b"Training/dog/not\xe9s.txt", b"x")
    put(skipped, "Training/cover.png")  # beside the classes
    put(skipped, "poster.png")  # beside the splits
    put(skipped, "extra/deep/0.png")
    link(skipped, "Training/cat/again.png", "0.png")
    link(skipped, "Testing/cat/leak.png", root / "Training" / "cat" / "1.png")
    link(skipped, "Training/cat/broken.txt", "nowhere")
    link(skipped, "Training/dog/around", root)
    link(skipped, "Training/dog/here", ".")
    link(skipped, "Testing/dog/training", root / "Training" / "dog")
    os.mkfifo(root / "Training" / "cat" / "pipe.png")
    skipped.append("Training/cat/pipe.png")
    put(unreadable, "Training/cat/empty.png", b"")
    put(unreadable, "Testing/dog/empty.jpg", b"")
    link(unreadable, "Training/dog/gone.png", "nowhere.png")
    return len(used), len(skipped), len(unreadable)


def config(folder: Path) -> dict:
    ops = "decode(3)|resize((16, 16))|normalize('half')"
    model = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "mlp_width": 8, "patch_size": 8, "image_size": 16}
    return {
        "model": {**model, "num_classes": "data"},
        "task": {"name": "classify"},
        "data": {"source": f"folder:{folder}", "max_unreadable_fraction": 0.2, "train": {"split": "train", "ops": ops},
                 "eval": {"split": "test", "ops": ops}},
        "total": "2 epochs", "batch_size": 8,
        "optimizer": {"name": "sgd"}, "schedule": {"name": "constant", "peak": 0.1},
        "evals": {"test": {"type": "classification"}, "features": {"type": "features"}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    return root, odd_folder(root)


@pytest.fixture(scope="module")
def trained(odd, tmp_path_factory):
    """Trains by the command; returns its messages and its workdir."""
    root, _ = odd
    where = tmp_path_factory.mktemp("jobs")
    (where / "config.py").write_text(
        f"from ml_collections import ConfigDict\ndef get_config(arg=''):\n    return ConfigDict({config(root)!r})\n"
    )
    command = [sys.executable, "scripts/train.py", f"--config={where / 'config.py'}", f"--workdir={where / 'workdir'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return done.stderr.decode(), where / "workdir"


def test_the_start_line_accounts_for_every_file(odd, trained):
    root, (used, skipped, unreadable) = odd
    (line,) = [line for line in trained[0].splitlines() if line.startswith(f"folder:{root}: ")]
    numbers = {word: int(count) for count, word in re.findall(r"(\d+) (files:|used|in other|skipped|unreadable)", line)}
    on_disk = sum(len(names) for _, _, names in os.walk(root)) + 3  # links to directories are none of os.walk's files
    assert numbers["files:"] == on_disk == used + skipped + unreadable
    assert numbers["used"] + numbers["in other"] == used and numbers["in other"] == 9
    assert (numbers["skipped"], numbers["unreadable"]) == (skipped, unreadable)
    rules = re.findall(r"[(;] ?(\d+) [^;:]*:", line[line.index("skipped") : line.index("unreadable")])
    assert sum(map(int, rules)) == skipped  # every rule with its count
    for part in (".git/HEAD", "2 .heic files, convert them", "a broken link",
                 "empty file", "Training/dog/here", "Testing/cat/leak.png", "Training/cat/A.png and"):  # fmt: skip
        assert part in line


def test_the_workdir_keeps_the_account(odd, trained):
    _, (used, skipped, unreadable) = odd
    told = json.loads((trained[1] / "files.json").read_text(encoding="utf-8"))
    (train_files,), (test_files,) = told["train"], told["test"]
    assert train_files["total"] == test_files["total"] == used + skipped + unreadable
    assert train_files["used"] + test_files["used"] == used
    names = [name for tally in train_files["skipped"].values() for name in tally["names"]]
    assert len(names) == skipped and "Training/dog/not\\xe9s.txt" in names
    assert told["unreadable_when_read"].keys() == {"cat/empty.png", "dog/gone.png"}


def test_latin_1_names_go_into_every_file_that_a_job_writes(trained):
    _, workdir = trained
    (features,) = workdir.glob("evaluations/*/features/features.npz")
    with np.load(features) as arrays:
        ids = set(arrays["id"].tolist())
    assert "cat/na\\xefve.png" in ids
    for path in workdir.rglob("*.json*"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        assert [json.loads(line) for line in lines]
    (page,) = workdir.glob("evaluations/*/test/page.html")
    assert "na\\\\xefve" in page.read_text(encoding="utf-8") or "na\\xefve" in page.read_text(encoding="utf-8")


def test_evaluations_say_it_too(odd, trained, capsys):
    root, _ = odd
    evaluate.evaluate(trained[1], ["features"])
    assert f"folder:{root}: " in capsys.readouterr().err
    (told,) = [json.loads(path.read_text()) for path in trained[1].glob("evaluations/*/files.json")]
    assert told["features"][0]["used"] == 9


def test_a_prepared_set_says_it_and_holds_every_image(odd, tmp_path):
    root, (used, skipped, unreadable) = odd
    told = prepare(f"folder:{root}", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"]["train"][0]["total"] == used + skipped + unreadable
    assert sum(after for _, after in told.examples.values()) == used
    assert "files of train: folder:" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["images/cat/0.png", "images/dog/0.png"],
            r"config.task: classify needs classes: .*deep/images holds no images but directories \(cat, dog\)",
        ),
        (["images/0.png", "images/1.png"], "config.task: classify needs two classes or more"),
        (["0.png", "1.png"], "config.task: classify needs classes, and folder:.* has no labels"),
    ],
)
def test_a_folder_one_level_off_is_no_classification(tmp_path, names, message):
    for name in names:
        path = tmp_path / "deep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG[0])
    wanted = config(tmp_path / "deep")
    wanted["data"]["train"]["split"] = wanted["data"]["eval"]["split"] = "all"
    with pytest.raises(ValueError, match=message):
        train.train(wanted, tmp_path / "workdir")
    model = {**wanted["model"], "name": "mae", "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    del model["num_classes"]
    unlabelled = wanted | {"total": "2 steps", "model": model, "task": {"name": "reconstruct"}, "evals": {}}
    assert len(setup(unlabelled).data.source) == 2
