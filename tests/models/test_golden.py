"""Every config's model, and others, have the parameters, outputs and gradients that were recorded of them."""

import pytest

from tests.models import recording

# Numbers of a record have 7 digits; sums in another order differ by some of the last.
TOLERANCE = 2e-5
# What is nothing but rounding, such as the gradient of a key's bias, which no softmax sees, is some 1e-7.
NOISE = 2e-2


@pytest.mark.parametrize("case", recording.CASES)
def test_the_model_is_as_recorded(case):
    recorded, now = recording.load(case), recording.record(case)
    for kind, arrays in recorded.items():
        assert now[kind].keys() == arrays.keys(), kind
        different = [
            f"{path}: {arrays[path]} was recorded, {row} now"
            for path, row in now[kind].items()
            if not _same(row, arrays[path])
        ]
        assert not different, f"{kind} of {case}:\n" + "\n".join(different)


def _same(now: list, recorded: list) -> bool:
    """Same shape and dtype, and both numbers within the tolerance, relative to the length of the recorded array."""
    (*kind, norm, product), (*recorded_kind, recorded_norm, recorded_product) = now, recorded
    limit = TOLERANCE * (recorded_norm + NOISE)
    return (
        kind == recorded_kind and abs(norm - recorded_norm) <= limit and abs(product - recorded_product) <= 10 * limit
    )


def test_there_is_no_record_without_a_case():
    assert {path.name for path in recording.FOLDER.iterdir()} == {recording.file(case).name for case in recording.CASES}
