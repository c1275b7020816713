"""Files of features: whole or not at all, and of this store or none."""

import subprocess
import sys

import numpy as np
import pytest

from vitvlm.training import feature_store
from vitvlm.training.feature_store import FeatureStore

DTYPE = np.dtype([("digest", feature_store.DIGEST), ("values", "float16", (3, 2))])
KILLED = """
import os, pathlib, signal, sys
from tests.training.test_feature_store import a_store, rows

store = a_store(pathlib.Path(sys.argv[1]))
store.add(rows(0, 2))
store.write_table("rows", rows(0, 2)["digest"])
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
getattr(store, sys.argv[2])(*[rows(2, 5)] if sys.argv[2] == "add" else ["rows", rows(2, 5)["digest"]])
"""


def a_store(folder, key="mine"):
    return FeatureStore(folder, key, DTYPE)


def rows(start, stop):
    made = np.zeros(stop - start, DTYPE)
    made["digest"] = [feature_store.digest(np.array(number)) for number in range(start, stop)]
    made["values"] = np.arange(start, stop)[:, None, None] + np.arange(6).reshape(3, 2) / 8
    return made


@pytest.mark.parametrize("writing", ["add", "write_table"])
def test_killed_while_it_writes(writing, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), writing], capture_output=True, timeout=100)
    assert done.returncode == -9, done.stderr
    assert len(list(tmp_path.glob("tmp-*"))) == 1
    store, said = a_store(tmp_path), []
    store.open(said.append)
    assert not said and not list(tmp_path.glob("tmp-*"))
    known = rows(0, 5)["digest"]
    assert [each.tobytes() in store for each in known] == [True, True, False, False, False]
    np.testing.assert_array_equal(store.table("rows", said.append), known[:2])
    store.add(rows(2, 5))
    np.testing.assert_array_equal(store[known[::-1].reshape(5, 1)][:, 0], rows(0, 5)[::-1])


def test_rows_of_nothing_are_zeros(tmp_path):
    found = a_store(tmp_path)[np.zeros((2, 3), feature_store.DIGEST)]
    assert found.shape == (2, 3) and not found["values"].any() and feature_store.NONE in a_store(tmp_path)


@pytest.mark.parametrize("change", ["bit", "cut", "empty", "longer", "key", "name"])
def test_each_damage_is_noticed(change, tmp_path):
    a_store(tmp_path, "other" if change == "key" else "mine").add(rows(0, 3))
    (file,) = tmp_path.glob("*.npy")
    content = file.read_bytes()
    if change == "name":
        file.rename(tmp_path / "features-none.npy")
    elif change != "key":
        bit = bytearray(content)
        bit[7] ^= 4  # of the header
        file.write_bytes({"bit": bytes(bit), "cut": content[:-1], "empty": b"", "longer": content + b"x"}[change])
    store, said = a_store(tmp_path), []
    store.open(said.append)
    assert len(said) == 1 and str(tmp_path / "features-") in said[0] and "checksum" in said[0]
    assert rows(0, 1)["digest"][0].tobytes() not in store and not list(tmp_path.glob("*.npy"))


def test_digests_tell_shapes_and_kinds_apart():
    one = np.arange(6, dtype=np.float32)
    others = (one.reshape(2, 3), one.reshape(3, 2), one.view(np.int32), one[::-1], one[:5])
    assert len({feature_store.digest(each) for each in (one, *others)}) == 6
    assert feature_store.digest(one.reshape(2, 3).T) == feature_store.digest(np.ascontiguousarray(one.reshape(2, 3).T))
    assert feature_store.digest(one, one) != feature_store.digest(one)
