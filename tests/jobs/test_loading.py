from vitvlm.jobs import loading


def test_loading_is_measured_against_numpy(tmp_path):
    loading.write_example(tmp_path, "Ti/16")
    seen = loading.measure(tmp_path, rounds=1)
    assert set(seen) == {"NumPy", "pretrained.load", "pretrained.load, scanned"}
    assert all(seconds > 0 for rounds in seen.values() for seconds, _ in rounds)
    shown = loading.table(tmp_path, seen)
    assert shown.row_count == 3 and shown.title == "23 MB of safetensors"
