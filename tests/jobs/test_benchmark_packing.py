"""The benchmark of packing: its mixed set fills its rows."""

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
