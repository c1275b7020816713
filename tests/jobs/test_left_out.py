"""Rows that operations leave out of examples are said: when first met, at the end of a training, in a protocol."""

import json

from tests.jobs import golden
from vitvlm.jobs.training import train


def test_the_log_and_the_protocol_say_what_was_left_out_and_why(tmp_path, capfd):
    config = golden.load("configs/vit.py", "debug")
    ops = (
        "decode(3)|central_crop(16)|resize(32)|normalize('half')|drop_hidden('boxes', min_visible=0.3)"
        "|pad('boxes', 1, surplus='first')"
    )
    config.data = dict(
        source="scenes:side=32,train=16,test=8", train=dict(split="train", ops=ops), eval=dict(split="test", ops=ops)
    )
    config.total, config.evals.test.every = "2 steps", None
    train.train(config, tmp_path)
    said = " ".join(capfd.readouterr().err.split())
    hidden, surplus = (
        "rows of 'boxes' of which 0.3 or less is seen (drop_hidden)",
        "rows of 'boxes' beyond the first 1 (pad)",
    )
    assert said.count(f"operations leave out {hidden}: they are counted") == 1
    assert said.count("left out by operations: ") == 1
    end = said.split("left out by operations: ")[1]
    assert end.split()[0].isdigit() and hidden in end and surplus in end
    (result,) = (tmp_path / "evaluations").rglob("result.json")
    protocol = json.loads(result.read_text())["protocol"]
    assert "; left out by operations: " in protocol and hidden in protocol and surplus in protocol
