"""Balanced sampling: how often each class and each image is drawn, and that it is the same however it is resumed."""

import json

import numpy as np
import pictures
import pytest
import shards
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.balance import Balance
from vitvlm.data.batches import train_batches
from vitvlm.data.errors import DataError

OPS = "decode|random_resized_crop((6, 5))|normalize"
COUNTS = {"ant": 2, "bee": 5, "cow": 13}


def listed(folder, labels):
    rows = []
    for i, label in enumerate(labels):
        (folder / f"{i}.png").write_bytes(pictures.encoded(pictures.pattern(9, 7, seed=i)))
        rows.append(json.dumps({"image": f"{i}.png", **({} if label is None else {"label": label})}))
    (folder / "list.jsonl").write_text("\n".join(rows))
    return sources.open(f"jsonl:{folder}/list.jsonl", "all")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    labels = [name for name, count in COUNTS.items() for _ in range(count)]
    return listed(tmp_path_factory.mktemp("set"), np.random.default_rng(0).permutation(labels).tolist())


def take(batches, count):
    return [{name: array.copy() for name, array in next(batches).items()} for _ in range(count)]


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("balance", [1.0, 0.5, 0.01])
def test_classes_are_drawn_by_their_shares(source, balance):
    counts = np.array(list(COUNTS.values()))
    wanted = counts ** (1 - balance) / (counts ** (1 - balance)).sum() * 20
    with train_batches(source, OPS, 5, seed=3, balance=balance) as batches:
        labels = np.concatenate([batch["label"] for batch in take(batches, 4 * 30)]).reshape(30, 20)
    drawn = np.array([np.bincount(epoch, minlength=3) for epoch in labels])
    assert (np.abs(drawn - wanted) < 1).all()  # in every epoch, to the next whole number
    np.testing.assert_allclose(drawn.mean(axis=0), wanted, atol=0.3)


def test_images_of_a_class_take_turns_and_repeats_are_augmented_anew(source):
    with train_batches(source, OPS, 20, seed=3, balance=1.0) as batches:
        batch, later = take(batches, 2)
    for label in range(3):
        members = np.flatnonzero(source.labels == label)
        times = np.bincount(batch["index"][batch["label"] == label], minlength=20)[members]
        assert times.max() - times.min() <= 1
    repeats = batch["image"][batch["index"] == np.flatnonzero(source.labels == 0)[0]]
    assert len(repeats) >= 3 and len(np.unique(repeats.reshape(len(repeats), -1), axis=0)) == len(repeats)
    assert (source.labels[batch["index"]] == batch["label"]).all()
    assert not np.array_equal(batch["index"], later["index"])


def test_no_balance_is_what_it_was(source):
    with train_batches(source, OPS, 5, seed=3) as plain, train_batches(source, OPS, 5, seed=3, balance=0.0) as zero:
        assert_equal(take(plain, 6), take(zero, 6))


def test_processes_and_seeds(source):
    def batches(seed=3, **options):
        with train_batches(source, OPS, 6, seed=seed, balance=0.5, **options) as stream:
            return take(stream, 8)

    whole, parts = batches(), [batches(process_index=i, process_count=2) for i in range(2)]
    together = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_equal(together, whole)
    assert_equal(batches(workers=1), whole)
    assert any((a["index"] != b["index"]).any() for a, b in zip(batches(seed=4), whole, strict=True))


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_going_on_changes_nothing(source, taken):
    def stream(**options):
        return train_batches(source, OPS, 6, **{"seed": 3, "balance": 0.7} | options)

    with stream() as batches:
        undisturbed = take(batches, 9)
    with stream() as batches:
        start = take(batches, taken)
        state = batches.get_state()
    with stream() as batches:
        batches.set_state(state)
        assert_equal(start + take(batches, 9 - taken), undisturbed)
    for other in (0.0, 0.5):
        with stream(balance=other) as batches, pytest.raises(ConfigError, match=r"saved with balance=0\.7"):
            batches.set_state(state)
    with stream(balance=0.0) as batches:
        plain = batches.get_state()
    with stream() as batches, pytest.raises(ConfigError, match=r"saved with balance=None, and this job has 0\.7"):
        batches.set_state(plain)


class Labels(sources.Source):
    """Labels alone."""

    def __init__(self, labels, classes):
        self.name, self.label_names = "labels", tuple(map(str, range(classes)))
        self._labels = np.array(labels, np.int32)

    labels = property(lambda self: self._labels)
    ids = property(lambda self: list(map(str, range(len(self._labels)))))

    def __getitem__(self, index):
        raise NotImplementedError


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=2, max_size=60), st.floats(0.01, 1), st.integers(0, 9))
def test_every_epoch_has_its_length_and_its_shares(labels, balance, epoch):
    """Whatever the counts; what cannot be read (-1) and classes without an image are never drawn."""
    labels[0] = 0
    drawn = Balance(Labels(labels, 6), balance, seed=0)
    index, draw = drawn.epoch(epoch)
    assert len(index) == len(draw) == len(labels) and set(index[draw == 0]) == set(index)
    assert len({(int(i), int(d)) for i, d in zip(index, draw, strict=True)}) == len(index)
    found = np.array(labels)[index]
    present = sorted(set(labels) - {-1})
    assert set(found) <= set(present)
    assert (np.abs(np.array([(found == label).sum() for label in present]) - drawn.draws) < 1 + 1e-6).all()


def test_the_log_says_what_an_epoch_is(source):
    told = "balance 1: an epoch is 20 draws (images -> draws: ant 2 -> 6.667, bee 5 -> 6.667, cow 13 -> 6.667)"
    assert str(Balance(source, 1.0, seed=0)) == told
    many = Balance(Labels([0] * 9 + list(range(1, 12)), 12), 1.0, seed=0)
    assert str(many).endswith("(images -> draws: 12 classes, from 1 1 -> 1.667 to 0 9 -> 1.667)")


def test_shards_are_read_by_random_access(tmp_path):
    samples = {f"{i}": {**shards.sample(i), "cls": b"rare" if i < 2 else b"common"} for i in range(8)}
    shards.write(tmp_path / "0.tar", samples)
    opened = sources.open(f"webdataset:{tmp_path}/0.tar", "all")
    with train_batches(opened, OPS, 8, seed=0, balance=1.0) as batches:
        assert np.bincount(next(batches)["label"]).tolist() == [4, 4]


@pytest.mark.parametrize("balance", [1.5, -0.5, float("nan"), "all", True])
def test_balances_that_cannot_be_meant(source, balance):
    with pytest.raises(ConfigError, match="must be from 0"):
        train_batches(source, OPS, 5, seed=3, balance=balance)


def test_what_has_no_classes_to_draw_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no labels"):
        train_batches(listed(tmp_path, [None, None]), OPS, 2, seed=0, balance=1.0)
    with pytest.raises(ConfigError, match=r"several labels each: use task\.class_weights"):
        train_batches(listed(tmp_path, [["a"], ["b"]]), OPS, 2, seed=0, balance=1.0)
