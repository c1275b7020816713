"""Batches and iterator states equal those recorded before examples became named fields, bit for bit.

recorded_batches.json was written by the code of that time: `python -m tests.data.test_recorded_batches`, with its names
of fields (mask, text) put for today's.
"""

import hashlib
import json
import pathlib
import sys
import tempfile

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2]))
from tests.data import pictures, shards
from vitvlm.data import sources
from vitvlm.data.batches import eval_batches, train_batches

RECORDED = pathlib.Path(__file__).parent / "recorded_batches.json"
NOW = {"mask": "example_mask", "text": "text_tokens"}

# Name: (source, split, operations, fields of train_batches); {} is a folder made for the test.
TRAINING = {
    "emoji": (
        "emoji",
        "train",
        "decode(3)|random_resized_crop(16, scale=(0.5, 1.0))|flip|normalize('emoji')|pick_text('name', 'keywords')"
        "|tokenize('emoji', 8)",
        {},
    ),
    "augmented": (
        "folder:{}/images",
        "all",
        "decode|random_resized_crop((6, 5))|flip|randaugment(2, 9, 0.5)|normalize|random_erasing",
        {},
    ),
    "balanced": (
        "folder:{}/images",
        "all",
        "decode(1)|random_crop((9, 7), padding=2)|flip|random_erasing|normalize",
        {"balance": 1.0},
    ),
    "scenes": (
        "scenes:side=24,train=20",
        "train",
        "decode|resize(16, 'fast')|normalize('half')|tokenize('emoji', 12, 'choices', most=8)"
        "|keep('caption', 'things')",
        {},
    ),
    "naflex": (
        "folder:{}/images",
        "all",
        "decode|random_crop((6, 7))|fit_patches(2, 10)|normalize('imagenet')|patchify(2, 10)",
        {},
    ),
    "stream": (
        "webdataset:{}/tars/*.tar",
        "all",
        "decode|resize(5)|flip|normalize|keep('caption')",
        {"shuffle_buffer": 4},
    ),
}
EVALUATION = {
    "padded": ("folder:{}/images", "all", "decode|resize_small(6)|central_crop(6)|normalize"),
    "bordered": (
        "emoji",
        "test[:7]",
        "decode|resize_pad((20, 12), 30)|rgb|normalize|tokenize('emoji', 6, 'name')|keep('name')",
    ),
}


def digest(array: np.ndarray) -> str:
    content = repr(array.tolist()).encode() if array.dtype.kind in "OSU" else array.tobytes()
    kind = "text" if array.dtype.kind in "OSU" else array.dtype.str
    return f"{kind} {list(array.shape)} {hashlib.blake2b(content, digest_size=8).hexdigest()}"


def make(folder: pathlib.Path) -> None:
    """Images of no compressor's making: their pixels alone count, and the places of those in tars."""
    pictures.folder(folder / "images", {"cat": 9, "dog": 4})
    emoji = sources.open("emoji", "train")
    (folder / "tars").mkdir()
    for shard in range(3):
        samples = {
            f"{i:03d}": {"png": emoji[i]["image"], "txt": emoji[i]["name"].encode()}
            for i in range(5 * shard, 5 * shard + 5)
        }
        shards.write(folder / "tars" / f"{shard}.tar", samples)


def trained(name: str, folder: pathlib.Path) -> dict:
    place, split, operations, fields = TRAINING[name]
    source = sources.open(place.format(folder), split)
    with train_batches(source, operations, 4, seed=5, **fields) as batches:
        first = [next(batches) for _ in range(2)]
        state = batches.get_state()
        first += [next(batches) for _ in range(2)]
    return {
        "state": json.loads(state),
        "batches": [{key: digest(array) for key, array in each.items()} for each in first],
    }


def evaluated(name: str, folder: pathlib.Path) -> list:
    place, split, operations = EVALUATION[name]
    batches = eval_batches(sources.open(place.format(folder), split), operations, 5, seed=2)
    return [{key: digest(array) for key, array in each.items()} for each in batches]


def record() -> dict:
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        make(folder)
        return {name: trained(name, folder) for name in TRAINING} | {
            name: evaluated(name, folder) for name in EVALUATION
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


@pytest.mark.parametrize("name", TRAINING)
def test_training(name, folder, recorded):
    found = trained(name, folder)
    assert found["batches"] == recorded[name]["batches"]
    kept = recorded[name]["state"]
    assert {key: found["state"][key] for key in kept} == kept


@pytest.mark.parametrize("name", TRAINING)
def test_a_recorded_state_goes_on(name, folder, recorded):
    place, split, operations, fields = TRAINING[name]
    with train_batches(sources.open(place.format(folder), split), operations, 4, seed=5, **fields) as batches:
        batches.set_state(json.dumps(recorded[name]["state"]).encode())
        found = [{key: digest(array) for key, array in next(batches).items()} for _ in range(2)]
    assert found == recorded[name]["batches"][2:]


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation(name, folder, recorded):
    assert evaluated(name, folder) == recorded[name]


if __name__ == "__main__":
    found = record()
    for each in found.values():
        rows = each["batches"] if isinstance(each, dict) else each
        rows[:] = [{NOW.get(key, key): value for key, value in row.items()} for row in rows]
    RECORDED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
