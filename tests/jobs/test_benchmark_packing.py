"""The benchmark of packing: its mixed set fills its rows, and both ways take steps and are told in a table."""

import json

from etils import epath

from vitvlm.jobs.benchmarks import packing
from vitvlm.jobs.setup.data import DataSetup


def test_a_mixed_set_fills_at_least_95_percent_of_its_rows(tmp_path):
    """Records of five kinds, tokenized and packed as in a training, the images' tokens among them."""
    configs = packing.configs(packing.Sizes(records=400), tmp_path)
    source = DataSetup.of(configs["packed"]).open().source
    tokens = sum(size.tokens for size in source.sizes)
    images = sum(size.images for size in source.sizes)
    assert images == 400  # one each, but for texts, and two of comparisons
    assert tokens / (512 * len(source)) >= 0.95


def test_both_ways_take_steps_and_are_told_in_a_table(tmp_path):
    sizes = packing.Sizes(records=40, length=256, rows=1, images=8, width=64, depth=1, side=32)
    measured = packing.measure(packing.configs(sizes, tmp_path / "set"), steps=1)
    packing.report(measured, "a model", epath.Path(tmp_path))
    cases = {case["name"]: case for case in json.loads((tmp_path / "packing.json").read_text())["cases"]}
    assert cases["packed"]["filled"] > 0.75 > cases["padded"]["filled"]
    assert cases["packed"]["places"] == 256 and all(case["tokens_per_second"] > 0 for case in cases.values())
    assert "| packed | 1 | 256 |" in (tmp_path / "packing.md").read_text()
