"""Batches: every example once, the same whatever the workers and processes, resumable, and honest about bad images."""

import multiprocessing
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pictures
import pytest
from batching import AUGMENTED, PLAIN, assert_equal, take

from vitvlm.core.config import ConfigError
from vitvlm.data import loader, sources
from vitvlm.data.batches import eval_batches, train_batches, zero_batch
from vitvlm.data.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures.folder(tmp_path_factory.mktemp("images"), {"cat": 15, "dog": 8})


@pytest.fixture
def source(folder):
    return sources.open(f"folder:{folder}", "all")


def test_shapes_dtypes_and_pixels(source):
    with train_batches(source, PLAIN, 4, seed=0) as batches:
        assert batches.image_shape == (9, 7, 3)
        batch = next(batches)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "image": ((4, 9, 7, 3), np.float32),
        "label": ((4,), np.int32),
        "example_mask": ((4,), np.float32),
        "index": ((4,), np.int64),
    }
    for image, label, index in zip(batch["image"], batch["label"], batch["index"]):
        name = source.ids[index]
        seed = 1000 * ("cat", "dog").index(name.split("/")[0]) + int(name[-7:-4])
        np.testing.assert_allclose(image, pictures.pattern(9, 7, seed=seed) / 127.5 - 1, atol=1e-6)
        assert label == source.labels[index]


def test_every_epoch_holds_every_example_once_in_its_own_order(source):
    with train_batches(source, PLAIN, 5, seed=0) as batches:
        indices = np.concatenate([b["index"] for b in take(batches, 14)])[: 3 * 23]
    epochs = indices.reshape(3, 23)
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(source):
    with train_batches(source, AUGMENTED, 6, 1) as one, train_batches(source, AUGMENTED, 6, 1) as two:
        assert_equal(take(one, 6), take(two, 6))
    with train_batches(source, AUGMENTED, 6, 2) as other, train_batches(source, AUGMENTED, 6, 1) as one:
        assert not np.array_equal(next(other)["index"], next(one)["index"])


def test_an_example_is_augmented_anew_in_each_epoch(source):
    with train_batches(source, "decode|random_crop(5)|normalize", 23, seed=0) as batches:
        first, second = take(batches, 2)
    crops = [batch["image"][np.argsort(batch["index"])] for batch in (first, second)]
    assert 10 < sum(not np.array_equal(a, b) for a, b in zip(*crops)) <= 23


def test_workers_and_a_resume_in_mid_epoch_change_nothing(source):
    """Undisturbed without workers = 3 batches with one worker, a state, and the rest with two."""
    with train_batches(source, AUGMENTED, 4, seed=5) as batches:
        undisturbed = take(batches, 9)
    with train_batches(source, AUGMENTED, 4, seed=5, workers=1) as batches:
        start = [{name: array.copy() for name, array in b.items()} for b in take(batches, 3)]
        state = batches.get_state()
    with train_batches(source, AUGMENTED, 4, seed=5, workers=2) as batches:
        batches.set_state(state)
        assert_equal(start + take(batches, 6), undisturbed)
    assert not multiprocessing.active_children()


def test_a_state_rewinds_a_running_iterator(source):
    with train_batches(source, AUGMENTED, 4, seed=5) as batches:
        next(batches)
        state = batches.get_state()
        ahead = take(batches, 3)
        batches.set_state(state)
        assert_equal(take(batches, 3), ahead)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}])
def test_a_state_of_another_job_is_refused(source, change):
    with train_batches(source, PLAIN, 4, seed=0) as batches:
        state = batches.get_state()
    arguments = {"batch_size": 4, "seed": 0} | change
    with train_batches(source, PLAIN, **arguments) as batches, pytest.raises(ConfigError, match=next(iter(change))):
        batches.set_state(state)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_same_global_batch(source, count):
    with train_batches(source, AUGMENTED, 6, seed=0) as batches:
        whole = take(batches, 5)
    parts = []
    for i in range(count):
        with train_batches(source, AUGMENTED, 6, seed=0, process_index=i, process_count=count) as batches:
            parts.append(take(batches, 5))
    joined = [{name: np.concatenate([p[name] for p in step]) for name in step[0]} for step in zip(*parts)]
    assert_equal(joined, whole)


@pytest.mark.parametrize("batch_size, count", [(4, 1), (6, 2), (12, 3), (32, 4), (23, 1), (1, 1)])
def test_evaluation_sees_every_example_exactly_once(source, batch_size, count):
    parts = [list(eval_batches(source, PLAIN, batch_size, process_index=i, process_count=count)) for i in range(count)]
    assert {len(part) for part in parts} == {-(-23 // batch_size)}
    rows = [b for part in parts for b in part]
    assert all(len(b["index"]) == batch_size // count for b in rows)
    mask = np.concatenate([b["example_mask"] for b in rows])
    index = np.concatenate([b["index"] for b in rows])
    assert sorted(index[mask == 1]) == list(range(23)) and (index[mask == 0] == -1).all()
    assert not np.concatenate([b["image"] for b in rows])[mask == 0].any()


def test_evaluation_is_in_order_repeatable_and_the_same_with_workers(source):
    passes = eval_batches(source, PLAIN, 4)
    first = list(passes)
    assert np.concatenate([b["index"] for b in first])[:23].tolist() == list(range(23)) and len(passes) == 6
    assert_equal(list(passes), first)
    assert_equal(list(eval_batches(source, PLAIN, 4, workers=1)), first)
    assert not multiprocessing.active_children()


def test_leaving_an_evaluation_early_ends_its_workers(source):
    for _ in eval_batches(source, PLAIN, 4, workers=1):
        break
    assert not multiprocessing.active_children()


def test_images_of_several_sizes_say_what_to_add(tmp_path):
    folder = pictures.folder(tmp_path, {"cat": 3})
    (folder / "cat" / "big.png").write_bytes(pictures.encoded(pictures.pattern(20, 20)))
    source = sources.open(f"folder:{folder}", "all")
    with pytest.raises(DataError, match="add resize or a crop"):
        list(eval_batches(source, PLAIN, 4))
    assert len(list(eval_batches(source, "decode|resize(8)|normalize", 4))) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"operations": "decode"}, "add normalize"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5, "process_count": 2}, "multiple of the 2 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index=2"),
        ({"workers": -1}, "workers=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_arguments_that_cannot_be_meant_are_errors(source, arguments, message):
    given = {"operations": PLAIN, "batch_size": 4, "seed": 0} | arguments
    with pytest.raises(ConfigError, match=message):
        train_batches(source, **given)


def test_closed_batches_say_so(source):
    batches = train_batches(source, PLAIN, 4, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_text_fields_are_batched_when_asked_for():
    emoji = sources.open("emoji", "test")
    batch = next(iter(eval_batches(emoji, "decode|normalize|keep('name', 'name_ja')", 8)))
    assert batch["name"].tolist() == [emoji[i]["name"] for i in range(8)]
    assert batch["name_ja"][0] == emoji[0]["name_ja"]


def test_a_batch_of_zeros_has_the_shapes_of_a_real_one(source):
    zeros = zero_batch(source, AUGMENTED, 4)
    with train_batches(source, AUGMENTED, 4, seed=0) as batches:
        real = next(batches)
    assert {name: (a.shape, a.dtype) for name, a in zeros.items()} == {
        name: (a.shape, a.dtype) for name, a in real.items()
    }
    assert not zeros["example_mask"].any()


CHILD = """
    import sys, time
    from vitvlm.data import sources, batches
    if __name__ == "__main__":
        stream = batches.train_batches(sources.open("emoji", "test"), "decode|normalize", 8, 0, workers=1)
        next(stream)
        print("running", flush=True)
        time.sleep(float(sys.argv[1]))
"""


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _children(pid):
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def test_a_killed_process_leaves_no_workers(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(CHILD))
    parent = subprocess.Popen([sys.executable, str(script), "60"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "running\n"
    workers = _children(parent.pid)
    assert workers
    parent.kill()
    parent.wait()
    deadline = time.time() + 20
    while any(_alive(worker) for worker in workers) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(_alive(worker) for worker in workers)


def test_a_script_that_forgets_to_close_ends_cleanly(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(CHILD))
    ended = subprocess.run([sys.executable, str(script), "0"], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0 and ended.stdout == "running\n"
    assert "Traceback" not in ended.stderr and "leaked" not in ended.stderr, ended.stderr


def test_a_small_data_set_is_decoded_once_and_a_large_one_each_time(source, monkeypatch):
    def count_reads(batches):
        reads = []
        read = type(source).__getitem__
        monkeypatch.setattr(type(source), "__getitem__", lambda self, i: (reads.append(i), read(self, i))[1])
        with batches:
            made = take(batches, 12)
        monkeypatch.setattr(type(source), "__getitem__", read)
        return len(reads), made

    kept = train_batches(source, AUGMENTED, 6, seed=0)
    monkeypatch.setattr(loader, "KEPT_BYTES", 9 * 7 * 3 * 23 - 1)
    reread = train_batches(source, AUGMENTED, 6, seed=0)
    reads, some = count_reads(kept)
    assert reads <= 23
    reads, others = count_reads(reread)
    assert reads >= 72
    assert_equal(some, others)
