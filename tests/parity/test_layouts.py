"""Every row of the tables in docs/weights.md: read with the reference's values, written and read again, or refused."""

import collections
import json

import jax
import layouts
import layouts_blip  # noqa: F401 (these register their cases)
import layouts_clip_files  # noqa: F401 (these register their cases)
import layouts_configs  # noqa: F401
import layouts_files  # noqa: F401
import layouts_huggingface  # noqa: F401
import layouts_language  # noqa: F401 (registers its cases)
import layouts_qformer  # noqa: F401
import layouts_text  # noqa: F401
import numpy as np
import pytest
import transformers
from huggingface import close

from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError

ROWS = {row.layout: row for row in layouts.rows()}


def test_each_row_has_one_case_and_each_case_a_row():
    counts = collections.Counter(row.layout for row in layouts.rows())
    assert not [name for name, count in counts.items() if count > 1]
    assert ROWS.keys() == layouts.CASES.keys()


@pytest.mark.parametrize("name", ROWS)
def test_layout(name, tmp_path):
    row, folder = ROWS[name], tmp_path / "theirs"
    folder.mkdir()
    layout = layouts.CASES[name](folder)
    if row.refused:
        with pytest.raises(pretrained.WeightsError) as refusal:
            pretrained.load(layout.path, **layout.fields)
        for words in row.refused:
            assert words in str(refusal.value)
        return
    assert row.read.startswith("yes") or "left out" in row.read, "say yes, what is left out, or refused and the words"
    loaded = pretrained.load(layout.path, **layout.fields)
    left = loaded.source.get("left_out", ())
    assert bool(left) == bool(row.left_out)
    assert all(name.startswith(row.left_out) for name in left)
    assert all(any(name.startswith(start) for name in left) for start in row.left_out)
    check_values(loaded, layout)
    check_written(loaded, row, tmp_path / "ours")


def check_values(loaded, layout):
    assert layout.expected
    run = jax.jit(lambda variables, call: loaded.model.apply(variables, *call, **layout.named))
    output = run(loaded.variables, layout.call)
    for place, wanted in layout.expected.items():
        found = output
        for part in place.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
        assert found is not None, place
        close(found, wanted, place)
        assert np.ptp(wanted) > 1e-3, f"{place}: all alike"


def check_written(loaded, row, folder):
    """Checks that weights are refused, or written in the row's format and read back as the same model."""
    format, *other = layouts.quoted(row.written)
    if row.written.startswith("refused"):
        with pytest.raises(ConfigError) as refusal:
            pretrained.save(loaded, folder)
        for words in (format, *other):
            assert words in str(refusal.value)
        return
    pretrained.save(loaded, folder, format=format)
    again = pretrained.load(folder)
    assert explicit(again.model) == explicit(loaded.model)
    ours, read = (paths.flatten(each.variables) for each in (loaded, again))
    assert ours.keys() == read.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(read[path], leaf, rtol=1e-6, err_msg=path)
    if format == "hf":
        (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
        assert architecture == (other[0] if other else row.layout)
        _, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
        said = tuple(other[1:])  # what has no use there, or is not there
        wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]
        assert not [name for name in wrong if not str(name).startswith(said)], info


def explicit(model):
    """Returns the same model with an explicit `cls_token`, which otherwise follows from the pooling."""
    return model.clone(cls_token=model.has_cls) if hasattr(model, "cls_token") else model
