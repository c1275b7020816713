"""Data that changed between two runs: what is noticed, how it is said, and how a training goes on all the same."""

import gzip
import json
import os
import shutil

import pictures
import pytest
import shards
from etils import epath

from vitvlm.core.config import ConfigError
from vitvlm.data import sources, stat_data
from vitvlm.data.batches import train_batches
from vitvlm.data.errors import DataError
from vitvlm.data.identity import Identity, load
from vitvlm.data.sources import prepared

OPS = "decode|resize((6, 5))|normalize"


@pytest.fixture
def folder(tmp_path):
    return pictures.folder(tmp_path / "images", {"a": 6, "b": 4})


def opened(folder, split="all"):
    return sources.open(f"folder:{folder}", split)


def stream(source, lists=None, **options):
    options = {"seed": 0, "shuffle_buffer": 3} | options
    return train_batches(source, OPS, 2, data={"train": Identity.of(source)}, lists=lists, **options)


def state_of(source, lists) -> bytes:
    Identity.of(source).save(lists)
    with stream(source) as batches:
        next(batches)
        return batches.get_state()


def rename(folder):
    (folder / "a").rename(folder / "z")


def edit(folder):
    path = folder / "a" / "001.png"
    content, before = bytearray(path.read_bytes()), path.stat()
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def replace(folder):
    (folder / "a" / "001.png").write_bytes(pictures.encoded(pictures.pattern(12, 10, seed=99)))


def swap_labels(folder):
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")


CHANGES = {
    "a class renamed so that all labels change": (rename, "class 'a' is 'z' now; labels are in another order. Put"),
    "a file edited": (edit, "1 file has changed, though not in size: a/001.png. Put"),
    "a file replaced": (replace, "1 file has changed: a/001.png. Put"),
    "a file removed": (lambda folder: (folder / "b" / "003.png").unlink(), "1 file is gone: b/003.png. Put"),
    "files added": (
        lambda folder: [shutil.copy(folder / "a" / "000.png", folder / "b" / f"x{i}.png") for i in range(5)],
        "5 files are new: b/x0.png, b/x1.png, b/x2.png and 2 more. Put",
    ),
    "a class added": (
        lambda folder: shutil.copytree(folder / "a", folder / "c"),
        "classes are new: c; 6 files are new",
    ),
    "the files of two classes exchanged": (swap_labels, "2 files are new: b/004.png, b/005.png"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_going_on_with_other_data_is_refused_and_says_what_changed(folder, tmp_path, change, said):
    lists = epath.Path(tmp_path)
    state = state_of(opened(folder), lists)
    change(folder)
    with stream(opened(folder), lists) as batches, pytest.raises(DataError) as error:
        batches.set_state(state)
    message = str(error.value)
    assert message.startswith("the training data are not those of the checkpoint: ") and said in message
    assert "--accept_changed_data" in message and "\n" not in message
    with stream(opened(folder), lists, accept_changes=True) as batches:
        batches.set_state(state)
        assert said.removesuffix(". Put") in batches.changes["train"]
        next(batches)
        again = batches.get_state()
    with stream(opened(folder), lists) as batches:
        batches.set_state(again)
        assert batches.changes == {}


def test_data_that_evaluations_judge_are_known_too(folder, tmp_path):
    """A training goes on with what it has, and its curve would not say that the test images are others now."""
    lists = epath.Path(tmp_path)
    names = ("config.evals.test", "config.evals.gone")

    def batches(*evaluated, **options):
        training = {"train": Identity.of(opened(folder, "all[:50%]"))}
        judged = {name: Identity.of(opened(folder, "all[50%:]")) for name in evaluated}
        for identity in judged.values():
            identity.save(lists)
        return train_batches(opened(folder, "all[:50%]"), OPS, 2, 0, data=training | judged, lists=lists, **options)

    with batches(*names) as running:
        state = running.get_state()
    (inside,) = {opened(folder, "all[50%:]").ids[0]}
    (folder / inside).write_bytes(pictures.encoded(pictures.pattern(12, 10, seed=99)))
    message = (
        rf"the data of config\.evals\.test are not those of the checkpoint: 1 file has changed: {inside}\. Put them"
    )
    with batches("config.evals.test") as running, pytest.raises(DataError, match=message):
        running.set_state(state)
    with batches("config.evals.test", accept_changes=True) as running:
        running.set_state(state)
        assert set(running.changes) == {"config.evals.test"}
    with batches("config.evals.new") as running:
        running.set_state(state)
        assert running.changes == {}


def test_a_copy_without_its_times_is_told_from_an_edit(folder, tmp_path):
    lists = epath.Path(tmp_path)
    state = state_of(opened(folder), lists)
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    with stream(opened(folder), lists) as batches, pytest.raises(DataError) as error:
        batches.set_state(state)
    assert "10 files have changed, though not in size: a/000.png" in str(error.value)
    assert "a copy keeps its times with cp -p or rsync -a" in str(error.value)


def test_the_same_data_elsewhere_are_the_same(folder, tmp_path):
    lists = epath.Path(tmp_path)
    state = state_of(opened(folder), lists)
    other = shutil.copytree(folder, tmp_path / "other", copy_function=shutil.copy2)
    with stream(opened(other), lists) as batches:
        batches.set_state(state)
        assert batches.changes == {}


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_without_the_list_of_files_a_change_is_still_noticed(folder, tmp_path, damage, caplog):
    lists = epath.Path(tmp_path)
    state = state_of(opened(folder), lists)
    (file,) = tmp_path.glob("data-*.json.gz")
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:30])
    else:
        file.write_bytes(gzip.compress(json.dumps({"classes": [], "items": {}}).encode()))
    rename(folder)
    with stream(opened(folder), lists) as batches, pytest.raises(DataError) as error:
        batches.set_state(state)
    assert "class 'a' is 'z' now; labels are in another order; files have changed (of 10 files then" in str(error.value)
    assert "is gone or damaged" in caplog.text and load(lists, "0" * 32) is None


def test_a_slice_knows_its_own_files_only(folder, tmp_path):
    lists = epath.Path(tmp_path)
    state = state_of(opened(folder, "all[:50%]"), lists)
    inside, outside = opened(folder, "all[:50%]").ids, opened(folder, "all[50%:]").ids
    os.utime(folder / outside[0], (1, 1))
    with stream(opened(folder, "all[:50%]"), lists) as batches:
        batches.set_state(state)
    os.utime(folder / inside[0], (1, 1))
    with stream(opened(folder, "all[:50%]"), lists) as batches, pytest.raises(DataError, match=inside[0]):
        batches.set_state(state)


def test_a_row_of_a_list_that_says_something_else_is_noticed(folder, tmp_path):
    lists = epath.Path(tmp_path)
    rows = [{"image": f"a/00{i}.png", "caption": f"picture {i}", "split": "train"} for i in range(5)]
    file = folder / "list.jsonl"

    def written():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sources.open(f"jsonl:{file}", "train")

    state = state_of(written(), lists)
    with stream(written(), lists) as batches:
        batches.set_state(state)
    rows[3]["caption"] = "another one"
    with stream(written(), lists) as batches, pytest.raises(DataError, match=r"1 file has changed.*: a/003\.png"):
        batches.set_state(state)


def test_other_weights_of_a_mixture_are_noticed(folder, tmp_path):
    one, two = (Identity.of(sources.open(f"mix:{w}*folder:{folder}+1*folder:{folder}", "all")) for w in (1, 3))
    assert one.digest != two.digest
    one.save(epath.Path(tmp_path))
    assert f"weight 1, of folder:{folder}" in two.changes(one.summary(), epath.Path(tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_changed_begin_anew_if_that_is_accepted(tmp_path, workers):
    lists = epath.Path(tmp_path)
    place = shards.folder(tmp_path / "set", [5, 4, 6])

    def source():
        return sources.open(f"webdataset:{place}/*.tar", "all")

    state = state_of(source(), lists)
    shards.write(place / "00003.tar", {"x": shards.sample(7), "y": shards.sample(8)})
    with stream(source(), lists) as batches, pytest.raises(DataError, match=r"1 file is new: 00003\.tar"):
        batches.set_state(state)
    if workers:
        return
    with stream(source(), lists, accept_changes=True) as batches:
        batches.set_state(state)
        assert batches.changes == {"train": "1 file is new: 00003.tar"} and next(batches)["example_mask"].all()


def test_another_seed_is_an_error_whatever_is_accepted(folder, tmp_path):
    lists = epath.Path(tmp_path)
    state = state_of(opened(folder), lists)
    edit(folder)
    with (
        stream(opened(folder), lists, accept_changes=True, seed=1) as batches,
        pytest.raises(ConfigError, match="seed"),
    ):
        batches.set_state(state)


def test_of_very_many_files_some_are_asked_for(folder, monkeypatch):
    monkeypatch.setattr(stat_data, "_MOST", 4)
    found = opened(folder).stamps()
    assert len(found) == 10 and sum(bool(stamp) for stamp in found.values()) == 4


@pytest.mark.parametrize("spec", ["emoji", "scenes"])
def test_every_source_tells_what_it_reads(spec):
    identity = Identity.of(sources.open(spec, "train"))
    assert identity.digest == Identity.of(sources.open(spec, "train")).digest
    assert bool(identity.items) == (spec == "emoji")


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """A copy of the embedded emoji, as another installation has it."""
    monkeypatch.setattr(prepared, "EMOJI", shutil.copytree(prepared.EMOJI, tmp_path / "installed"))
    return tmp_path / "installed"


def test_another_installation_of_the_embedded_data_changes_nothing(embedded, tmp_path, monkeypatch):
    before = Identity.of(sources.open("emoji", "train"))
    for path in embedded.iterdir():
        os.utime(path, (1, 1))
    stat_data._content.cache_clear()
    assert Identity.of(sources.open("emoji", "train")).digest == before.digest
    again = shutil.copytree(embedded, tmp_path / "again", copy_function=shutil.copy)
    monkeypatch.setattr(prepared, "EMOJI", again)
    assert Identity.of(sources.open("emoji", "train")).digest == before.digest


def test_other_embedded_data_are_a_change_though_of_the_same_size_and_time(embedded, tmp_path):
    lists = epath.Path(tmp_path)
    before = Identity.of(sources.open("emoji", "train"))
    before.save(lists)
    file = embedded / "group.labels.txt"
    content, then = file.read_bytes(), file.stat()
    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    stat_data._content.cache_clear()
    now = Identity.of(sources.open("emoji", "train"))
    assert "1 file has changed, though not in size: group.labels.txt" in now.changes(before.summary(), lists)


def test_a_list_of_times_by_an_earlier_version_is_the_same_embedded_data(embedded, tmp_path):
    """Unless the size is another; and a folder's times still tell."""
    lists, now = epath.Path(tmp_path), Identity.of(sources.open("emoji", "train"))
    files = {path.name: path for path in embedded.iterdir()}
    before = Identity(now.classes, stat_data.described(files))
    before.save(lists)
    assert before.digest != now.digest and now.changes(before.summary(), lists) == ""
    shorter = before.items | {"tokenizer.json": f"9 {before.items['tokenizer.json'].split()[1]}"}
    other = Identity(now.classes, shorter)
    other.save(lists)
    assert "1 file has changed: tokenizer.json" in now.changes(other.summary(), lists)
    assert not stat_data.same("5 100", "5 101") and stat_data.same("5 100", "5 100")
