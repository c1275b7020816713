"""Memory of steps with frozen parameters: arguments to the byte, and no temporaries of what does not train."""

import dataclasses
import json

import jax
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.jobs.benchmarks import frozen_memory

SIZES = frozen_memory.Sizes(width=64, depth=8, heads=2, patch_size=8, image_size=16, batch_size=4, classes=3)
D, M, N, DEPTH, CLASSES = 64, 256, 4, 8, 3
TRAINED = DEPTH * (D * D + 4 * D + M + D + 4 * D) + (N + 1) * D + D + 2 * D + D * CLASSES + CLASSES
MATRICES = DEPTH * (3 * D * D + 2 * D * M)  # that are frozen, and stored in some way
PATCHES = 8 * 8 * 3 * D + D  # frozen as the model makes them
SCALES = 4 * DEPTH * (3 * D + M + D * (M // 64))  # each of 64 inputs: queries, keys and values; up; down
STORED = {
    "float32": 4 * MATRICES,
    "bfloat16": 2 * MATRICES,
    "int8": MATRICES + SCALES,
    "nf4": MATRICES // 2 + SCALES,
}
# Each is compiled in one way: the two share nothing that the other has.
WAY = {"all train": "accumulate", "float32": "ema", "bfloat16": "accumulate", "int8": "accumulate", "nf4": "ema"}
# The image, its label and whether it counts; the counters of the state, of AdamW and of its schedule, and the key.
BATCH, COUNTERS = 4 * (4 * 16 * 16 * 3 + 4 + 4), 3 * 4 + 8


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen_memory")
    return {
        one.stored: one
        for stored, way in WAY.items()
        for one in frozen_memory.run(SIZES, [stored], [way], jax.devices()[0], str(folder / stored))
    }, folder


@pytest.mark.parametrize("stored", STORED)
def test_arguments_are_the_sum_of_the_parts_to_the_byte(measured, stored):
    one, averaged = measured[0][stored], WAY[stored] == "ema"
    assert one.frozen_share == (MATRICES + PATCHES) / (MATRICES + PATCHES + TRAINED) > 0.85
    frozen = STORED[stored] + 4 * PATCHES
    assert one.arguments == (3 + averaged) * 4 * TRAINED + frozen + BATCH + COUNTERS
    assert one.held == one.arguments
    assert (one.parameters, one.frozen, one.ema) == (4 * TRAINED, frozen, averaged * 4 * TRAINED)
    assert one.outputs - one.alias < 1024, "the state takes its own place; metrics are new"


def test_without_anything_frozen_all_of_it_is_held_three_times(measured):
    one = measured[0]["all train"]
    assert one.frozen_share == one.frozen == 0
    assert one.arguments == one.held == 3 * 4 * (TRAINED + MATRICES + PATCHES) + BATCH + COUNTERS
    assert one.temporaries > 2 * 4 * MATRICES, "gradients, and the buffer that they are summed in"


@pytest.mark.parametrize("stored", STORED)
def test_no_temporaries_are_as_large_as_gradients_of_what_is_frozen(measured, stored):
    """Nor as large as what is frozen made whole: above the parts there is room for a layer or two."""
    one, layer = measured[0][stored], 4 * MATRICES // DEPTH
    assert one.needed == (1 + (WAY[stored] == "accumulate")) * 4 * TRAINED + one.activations
    assert one.temporaries < one.needed + 2 * layer < one.needed + 4 * MATRICES / 3


def test_the_table_is_written(measured):
    folder = measured[1] / "nf4"
    content = json.loads((folder / "frozen_memory.json").read_text())
    assert content["cases"][0]["stored"] == "nf4" and content["sizes"]["width"] == D
    text = (folder / "frozen_memory.md").read_text()
    assert text.splitlines()[0] == f"| {' | '.join(frozen_memory.COLUMNS)} |" and "| ema | nf4 |" in text


@pytest.mark.parametrize(
    ("stored", "way", "sizes", "message"),
    [
        ("int4", "plain", {}, "--stored: 'int4'; did you mean .*int8"),
        ("int8", "emma", {}, "--ways: 'emma'; did you mean .*ema"),
        ("int8", "plain", {"heads": 3}, "heads"),
        ("int8", "plain", {"patch_size": 7}, "patch_size"),
        ("int8", "accumulate", {"batch_size": 3}, "config.accumulate: a batch of 3 does not divide"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, stored, way, sizes, message):
    with pytest.raises(ConfigError, match=message):
        odd = dataclasses.replace(SIZES, **sizes)
        frozen_memory.run(odd, [stored], [way], jax.devices()[0], str(tmp_path))
