"""Shards that vanish, or are cut, count as the examples that they should have held."""

import json
import re

import numpy as np
import pytest
import shards

from vitvlm.data import sources
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import TooManyUnreadable
from vitvlm.data.sources import relabelled, shard_counts

OPS = "decode|resize((6, 5))|normalize"


def opened(folder):
    return sources.open(f"webdataset:{folder}/*.tar", "all")


def take(batches, count):
    return [next(batches) for _ in range(count)]


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_are_deleted_in_mid_run_stop_the_job_which_names_them(tmp_path, workers):
    """Nine of ten shards: 90 % of the examples, but only nine of the images met next."""
    folder = shards.folder(tmp_path / "set", [20] * 10)
    with train_batches(opened(folder), OPS, 10, seed=0, workers=workers, shuffle_buffer=5) as batches:
        take(batches, 100)
        for i in range(1, 10):
            (folder / f"{i:05d}.tar").unlink()
        with pytest.raises(TooManyUnreadable) as error:
            take(batches, 30)
    said = str(error.value)
    assert "more than max_unreadable_fraction=0.01: 0000" in said
    assert ".tar: No such file or directory: all its 20 examples are lost" in said


def test_a_shard_that_was_read_before_counts_as_many_as_it_held(tmp_path):
    folder = shards.folder(tmp_path / "set", [30, 7, 12])
    with train_batches(opened(folder), OPS, 1, seed=0, max_unreadable_fraction=0.9, shuffle_buffer=1) as batches:
        take(batches, 49)
        assert batches.bad.count == 0 and batches.bad.seen == 49
        (folder / "00001.tar").unlink()
        cut(folder / "00000.tar")
        take(batches, 60)
    reasons = batches.bad.names
    assert reasons.pop("00001.tar") == "No such file or directory: all its 7 examples are lost"
    (name,) = reasons
    assert name.startswith("00000.tar/") and " of the shard's 30 examples are lost" in reasons[name]
    assert batches.bad.epochs[1] == (49, 7 + int(re.search(r"(\d+) of the shard's", reasons[name])[1]))


@pytest.mark.parametrize(
    "index", [{"00001_stats.json": {"count": 12, "successes": 9}}, {"sizes.json": {"00001.tar": 9}}]
)
def test_an_index_says_what_a_shard_that_was_cut_before_the_job_should_hold(tmp_path, index):
    folder = shards.folder(tmp_path / "set", [6, 9])
    cut(folder / "00001.tar", 0.4)
    plain = eval_batches(opened(folder), OPS, 5, max_unreadable_fraction=1)
    list(plain)
    assert plain.bad.count == 1, "without an index nobody can know"
    for name, content in index.items():
        (folder / name).write_text(json.dumps(content))
    told = eval_batches(opened(folder), OPS, 5, max_unreadable_fraction=1)
    whole = sum(batch["example_mask"].sum() for batch in told)
    assert (told.bad.seen, whole + told.bad.count) == (15, 15) and told.bad.count > 4
    with train_batches(opened(folder), OPS, 1, seed=0, max_unreadable_fraction=0.9, shuffle_buffer=1) as batches:
        take(batches, 30)
        assert batches.bad.epochs[0] == (15, told.bad.count)


def test_a_shard_that_is_gone_before_its_first_reading_counts_by_its_size(tmp_path):
    folder = shards.folder(tmp_path / "set", [30, 120])
    source = opened(folder)
    (folder / "00001.tar").unlink()
    evaluated = eval_batches(source, OPS, 8, max_unreadable_fraction=1)
    assert sum(batch["example_mask"].sum() for batch in evaluated) == 30
    assert abs(evaluated.bad.count - 120) <= 12 and evaluated.bad.seen == 30 + evaluated.bad.count
    assert evaluated.bad.names == {"00001.tar/byte 0": "No such file or directory"}


@pytest.mark.parametrize("taken", [5, 9, 14])
def test_going_on_with_lost_shards_changes_nothing(tmp_path, taken):
    folder = shards.folder(tmp_path / "set", [12, 5, 8])

    source = opened(folder)
    (folder / "00001.tar").unlink()
    cut(folder / "00000.tar")
    with train_batches(source, OPS, 3, seed=4, max_unreadable_fraction=0.9, shuffle_buffer=6) as undisturbed:
        wanted = take(undisturbed, 20)
        end = undisturbed.get_state()
    with train_batches(source, OPS, 3, seed=4, max_unreadable_fraction=0.9, shuffle_buffer=6) as batches:
        first = take(batches, taken)
        state = batches.get_state()
    with train_batches(source, OPS, 3, seed=4, max_unreadable_fraction=0.9, shuffle_buffer=6) as batches:
        batches.set_state(state)
        for one, other in zip(first + take(batches, 20 - taken), wanted, strict=True):
            np.testing.assert_array_equal(one["index"], other["index"])
            np.testing.assert_array_equal(one["image"], other["image"])
        assert batches.get_state() == end


def test_every_kind_of_index(tmp_path, caplog):
    names = [f"{i:05d}.tar" for i in range(8)]
    files = {
        "00000_stats.json": '{"count": 5, "successes": 3}',
        "00001.tar.idx.json": "7",
        "00002.idx.json": "[1, 2]",
        "00003.idx": "v1.2 11\npng 512 3 00000.png\n",
        "index.json": '{"wids_version": 1, "shardlist": [{"url": "http://x/set/00004.tar", "nsamples": 13}, 3]}',
        "sizes.json": '{"00005.tar": 17, "00006.tar": "many"}',
        "00007_stats.json": '{"successes": ',
        "00006.idx": "what",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert shard_counts.read([str(tmp_path / name) for name in names]) == {0: 3, 1: 7, 2: 2, 3: 11, 4: 13, 5: 17}
    assert "00007_stats.json: is damaged" in caplog.text


def test_a_shard_that_is_lost_under_other_classes_is_counted_too(tmp_path):
    labelled = [{**shards.sample(i), "cls": b"cat" if i % 2 else b"dog"} for i in range(40)]
    for shard in range(2):
        shards.write(tmp_path / f"{shard}.tar", {f"{i:03d}": labelled[i] for i in range(20 * shard, 20 * shard + 20)})
    source = relabelled.renamed(opened(tmp_path), {"cat": "tiger"})
    assert source.label_names == ("tiger", "dog")
    (tmp_path / "1.tar").unlink()
    with train_batches(source, OPS, 4, seed=0, max_unreadable_fraction=0.9, shuffle_buffer=4) as batches:
        take(batches, 8)
    assert batches.bad.names == {"1.tar": "No such file or directory: all its 20 examples are lost (by its size)"}
