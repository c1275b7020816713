"""WebDataset tars: streamed in shuffled order, shared out, resumable at any batch, honest about what is damaged."""

import io
import multiprocessing
import subprocess
import sys
import tarfile
import textwrap

import numpy as np
import pictures
import pytest
import shards
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.batches import eval_batches, train_batches, zero_batch
from vitvlm.data.errors import DataError, TooManyUnreadable, UnreadableImage
from vitvlm.data.sources import tars, webdataset

OPS = "decode|random_resized_crop((6, 5))|flip|normalize|tokenize('emoji', 8)|keep('caption')"
COUNTS = [5, 1, 4, 7, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shards.folder(tmp_path_factory.mktemp("tars") / "set", COUNTS)


def opened(folder):
    return sources.open(f"webdataset:{folder}/*.tar", "all")


def take(batches, count):
    return [{name: array.copy() for name, array in next(batches).items()} for _ in range(count)]


def captions(batches):
    return [caption for batch in batches for caption in batch["caption"]]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_an_example_is_what_was_written(folder):
    example = opened(folder)[6]
    about = {"key": "00006", "width": "7", "url": None, "caption": "picture 6", "label": 0, "id": "00002.tar/00006"}
    assert {name: value for name, value in example.items() if name != "image"} == about
    np.testing.assert_array_equal(
        np.asarray(pictures.Image.open(io.BytesIO(example["image"]))), pictures.pattern(9, 7, seed=6)
    )


def test_one_reader_gives_every_example_once_an_epoch_in_its_own_order(folder):
    with train_batches(opened(folder), OPS, 1, seed=0, shuffle_buffer=4) as batches:
        seen = np.array(captions(take(batches, 3 * 23))).reshape(3, 23)
    wanted = sorted(f"picture {i}" for i in range(23))
    assert all(sorted(epoch) == wanted for epoch in seen)
    assert len({tuple(epoch) for epoch in seen}) == 3


def test_without_a_buffer_shards_are_read_from_front_to_back(folder):
    with train_batches(opened(folder), OPS, 1, seed=0, shuffle_buffer=1) as batches:
        indices = np.concatenate([batch["index"] for batch in take(batches, 23)])
    shard = indices >> 40
    starts = np.flatnonzero(np.diff(shard, prepend=-1))
    assert len(starts) == 5 and shard[starts].tolist() != sorted(shard[starts])
    assert all((np.diff(part) > 0).all() for part in np.split(indices, starts[1:]))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_processes_share_the_shards_of_every_epoch(folder, count):
    """However many readers there are, the shards that they have finished are each epoch's, each once."""
    source = opened(folder)
    turns = []
    for i in range(count):
        with train_batches(
            source, OPS, count, seed=0, shuffle_buffer=1, process_index=i, process_count=count
        ) as batches:
            index = np.concatenate([batch["index"] for batch in take(batches, 60)])
        read = [int(index[0] >> 40)]  # every restart of a shard begins at its first byte
        read += [int(after >> 40) for after in index[1:] if after & (2**40 - 1) == 0]
        turns.append(read)
    whole = min(map(len, turns))
    dealt = [turns[j % count][j // count] for j in range(count * whole)]
    for epoch in range(len(dealt) // 5):
        assert sorted(dealt[5 * epoch : 5 * epoch + 5]) == list(range(5))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_going_on_from_any_batch_changes_nothing(folder, workers):
    def stream():
        return train_batches(opened(folder), OPS, 4, seed=5, workers=workers, shuffle_buffer=6)

    with stream() as batches:
        undisturbed = take(batches, 14)
    for taken in (0, 1, 5, 9) if workers == 0 else (4,):
        with stream() as batches:
            start = take(batches, taken)
            state = batches.get_state()
        with stream() as batches:
            batches.set_state(state)
            assert batches.get_state() == state
            assert_equal(start + take(batches, 14 - taken), undisturbed)
    assert not multiprocessing.active_children()


def test_a_state_rewinds_a_running_stream(folder):
    with train_batches(opened(folder), OPS, 4, seed=5, shuffle_buffer=6) as batches:
        take(batches, 2)
        state = batches.get_state()
        ahead = take(batches, 4)
        batches.set_state(state)
        assert_equal(take(batches, 4), ahead)


@pytest.mark.parametrize("change", [{"seed": 1}, {"shuffle_buffer": 9}, {"workers": 2}, {"batch_size": 2}])
def test_a_state_of_another_job_is_refused(folder, change):
    with train_batches(opened(folder), OPS, 4, seed=0) as batches:
        state = batches.get_state()
    with (
        train_batches(opened(folder), OPS, **({"batch_size": 4, "seed": 0} | change)) as batches,
        pytest.raises(ConfigError, match=next(iter(change))),
    ):
        batches.set_state(state)


CHILD = """
    import json, sys
    from vitvlm.data import sources, batches
    if __name__ == "__main__":
        source = sources.open("webdataset:" + sys.argv[1] + "/*.tar", "all")
        stream = batches.train_batches(source, sys.argv[2], 4, 5, workers=2, shuffle_buffer=6)
        for _ in range(5):
            next(stream)
        print(stream.get_state().decode(), flush=True)
        while True:
            next(stream)
"""


def test_killed_in_mid_epoch_another_process_goes_on_bit_by_bit(folder, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(CHILD))
    child = subprocess.Popen([sys.executable, str(script), str(folder), OPS], stdout=subprocess.PIPE, text=True)
    state = child.stdout.readline()
    child.kill()
    child.wait()
    with train_batches(opened(folder), OPS, 4, seed=5, workers=2, shuffle_buffer=6) as batches:
        undisturbed = take(batches, 9)
        batches.set_state(state.encode())
        assert_equal(take(batches, 4), undisturbed[5:])


@pytest.mark.parametrize("batch_size, count", [(4, 1), (6, 2)])
def test_evaluation_sees_every_example_once_in_order(folder, batch_size, count):
    parts = [
        list(eval_batches(opened(folder), OPS, batch_size, process_index=i, process_count=count)) for i in range(count)
    ]
    index = np.concatenate([batch["index"] for part in parts for batch in part])
    text = np.array(captions(batch for part in parts for batch in part))
    assert text[index >= 0][np.argsort(index[index >= 0])].tolist() == [f"picture {i}" for i in range(23)]
    assert zero_batch(opened(folder), OPS, 2)["text_tokens"].shape == (2, 8)


def damaged(tmp_path):
    """Shard 0: five kinds of bad samples among good ones; shard 1: cut off in its last image; shard 2: gone bad."""
    good = [shards.sample(i) for i in range(8)]
    first = {
        "a": good[0],
        "b": good[1] | {"png": b""},
        "c": {"png": good[2]["png"], "json": b"{}"},
        "d": good[3] | {"json": b"{"},
        "e": good[4] | {"txt": b"\xff"},
        "f": {"txt": b"alone"},
        "g": good[5],
    }
    shards.write(tmp_path / "0.tar", first)
    whole = shards.write(tmp_path / "1.tar", {"h": good[6], "i": good[7]}).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: whole.index(b"i.png") + 512 + 50])
    return opened(tmp_path)


def test_what_is_wrong_is_counted_and_named_and_the_rest_goes_on(tmp_path):
    source = damaged(tmp_path)
    reasons = {
        "0.tar/b": "0 bytes that are not an image",
        "0.tar/c": "no text in caption",
        "0.tar/d": "damaged text or JSON: ",
        "0.tar/e": "damaged text or JSON: ",
        "0.tar/f": "needs one image",
        "1.tar/i": "i.png is cut off by the end of the archive",
    }
    ops = OPS.replace("|keep('caption')", "")
    with train_batches(source, ops, 3, seed=0, max_unreadable_fraction=0.7, shuffle_buffer=3) as batches:
        seen = take(batches, 3)
        assert batches.bad.seen == 9 and batches.bad.count == 6
        assert sum(batch["example_mask"].sum() for batch in seen) == 3
        assert batches.bad.names.keys() == reasons.keys()
        assert all(batches.bad.names[name].startswith(reason) for name, reason in reasons.items())
        state = batches.get_state()
        ahead = take(batches, 2)
        batches.set_state(state)
        assert batches.bad.count == 6
        assert_equal(take(batches, 2), ahead)
    evaluated = eval_batches(source, ops, 4, max_unreadable_fraction=0.7)
    assert sum(batch["example_mask"].sum() for batch in evaluated) == 3 and evaluated.bad.names.keys() == reasons.keys()


def test_above_the_share_one_error_names_the_first(tmp_path):
    with (
        train_batches(damaged(tmp_path), OPS, 3, seed=0, max_unreadable_fraction=0.5, bad_after=9) as batches,
        pytest.raises(TooManyUnreadable, match=r"of 9 images .* max_unreadable_fraction=0.5: \d.tar/\w: .*and 1 more"),
    ):
        take(batches, 3)


def test_a_shard_that_is_gone_is_counted(tmp_path):
    source = opened(shards.folder(tmp_path / "set", [2, 2]))
    (tmp_path / "set" / "00001.tar").unlink()
    with train_batches(source, OPS, 3, seed=0, max_unreadable_fraction=0.6, bad_after=3) as batches:
        take(batches, 2)
    assert batches.bad.names == {"00001.tar": "No such file or directory: all its 2 examples are lost (by its size)"}
    assert batches.bad.count % 2 == 0 and batches.bad.seen == 6 + batches.bad.count // 2


def test_a_damaged_header_costs_what_it_heads(tmp_path):
    path = shards.folder(tmp_path / "set", [3]) / "00000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"00001.png")] ^= 0xFF
    path.write_bytes(content)
    source = opened(tmp_path / "set")
    assert source.ids == ["00000.tar/00000", "00000.tar/byte 3072", "00000.tar/00001", "00000.tar/00002"]
    with pytest.raises(UnreadableImage, match="byte 3072: damaged header"):
        source[1]
    assert source[3]["caption"] == "picture 2"


@pytest.mark.parametrize(
    "content, reason", [(b"", "cut off"), (bytes(1024), "holds no files"), (b"x" * 700, "damaged")]
)
def test_an_archive_of_nothing_is_told(tmp_path, content, reason):
    shards.folder(tmp_path / "set", [2])
    (tmp_path / "set" / "00001.tar").write_bytes(content)
    found = [record.found for record in opened(tmp_path / "set").read(1)]
    assert isinstance(found[0], UnreadableImage) and reason in found[0].reason


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/.\0"), min_size=1, max_size=150)


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(NAMES, min_size=1, max_size=4, unique=True),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    content=st.binary(max_size=1100),
)
def test_archives_of_every_format_read_back_from_any_sample(tmp_path_factory, keys, form, content):
    files = {key: {"jpg": content, "seg.txt": b"t"} for key in keys}
    try:
        path = shards.write(tmp_path_factory.mktemp("tar") / "0.tar", files, form)
    except ValueError:  # names that USTAR cannot hold
        return
    with path.open("rb") as file:
        found = list(tars.samples(file))
        assert [(each.key, each.files, each.damage) for each in found] == [(k, f, "") for k, f in files.items()]
        for place, each in enumerate(found):
            assert list(tars.samples(file, each.offset)) == found[place:]
            assert list(tars.samples(file, each.end)) == found[place + 1 :]


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 9 * 1024), change=st.integers(1, 255), cut=st.integers(0, 10 * 1024))
def test_no_damage_raises_and_every_place_reads_on_the_same(tmp_path_factory, place, change, cut):
    path = shards.write(tmp_path_factory.mktemp("tar") / "0.tar", {f"{i}": shards.sample(i) for i in range(3)})
    content = bytearray(path.read_bytes())
    content[place] ^= change
    path.write_bytes(content[: len(content) - cut])
    with path.open("rb") as file:
        found = list(tars.samples(file))
        assert found
        for number, each in enumerate(found):
            assert list(tars.samples(file, each.offset)) == found[number:]
            assert list(tars.samples(file, each.end)) == found[number + 1 :]


def test_patterns(tmp_path):
    for name in ("a/00.tar", "a/01.tar", "b/00.tar", "b/01.tar", "b/x.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern):
        return [path.removeprefix(f"{tmp_path}/") for path in webdataset.expand(f"{tmp_path}/{pattern}")]

    assert names("{a,b}/{00..01}.tar") == ["a/00.tar", "a/01.tar", "b/00.tar", "b/01.tar"]
    assert names("b/*.tar") == ["b/00.tar", "b/01.tar", "b/x.tar"]
    assert names("{b,a}/0?.tar") == ["b/00.tar", "b/01.tar", "a/00.tar", "a/01.tar"]
    with pytest.raises(DataError, match=r"no file .*/a/02\.tar"):
        names("a/{00..02}.tar")
    with pytest.raises(DataError, match="counts nothing"):
        names("a/{03..02}.tar")
    with pytest.raises(ConfigError, match="no split 'train'; write split='all'"):
        sources.open(f"webdataset:{tmp_path}/a/*.tar", "train")
    with pytest.raises(ConfigError, match="shuffle_buffer=0"):
        train_batches(opened(shards.folder(tmp_path / "set", [1])), OPS, 1, seed=0, shuffle_buffer=0)


def test_a_slice_is_random_access(folder):
    assert len(sources.open(f"webdataset:{folder}/*.tar", "all[:10]")) == 10
