import pathlib

from vitvlm.jobs.benchmarks import loading


def test_loading_is_measured_against_numpy(tmp_path):
    loading.write_example(tmp_path, "Ti/16")
    seen = loading.measure(tmp_path, rounds=1)
    assert set(seen) == {"NumPy", "pretrained.load", "pretrained.load, scanned"}
    assert all(seconds > 0 for rounds in seen.values() for seconds, _ in rounds)
    shown = loading.table(tmp_path, seen)
    assert shown.row_count == 3 and shown.title == "23 MB of safetensors"


def test_loading_onto_shards_is_measured_in_fresh_processes(tmp_path):
    loading.write_example(tmp_path, "Ti/16")
    found = loading.measure_shards(tmp_path, 1, 4, {"this": pathlib.Path(__file__).parents[2]})
    assert set(found) == {("this", "scan"), ("this", "loop")}
    for timed, watched in found.values():
        assert timed["seconds"] > 0 and watched["device"] == watched["share"]
        assert watched["bytes"] / 4 <= watched["share"] < watched["bytes"] / 3
    assert loading.shards_table(tmp_path, found).row_count == 2
