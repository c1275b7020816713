"""Metrics: JSON lines that survive a crash, TensorBoard, Weights & Biases; rates; and what the terminal shows."""

import io
import json
import sys

import jax
import pytest
from rich.console import Console

from vitvlm.core.config import ConfigError
from vitvlm.training import peak_flops, writers
from vitvlm.training.progress import Progress, duration
from vitvlm.training.speed import Speed


def test_rows_after_the_mark_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path)
    writer.write(1, {"train/loss": 2.5})
    mark = writer.mark()
    writer.write(1, {"val/accuracy": 0.5, "val/protocol": "top-1"})
    writer.write(2, {"train/loss": 2.0})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 3, "train/lo')
    assert [row["step"] for row in writers.read(path)] == [1, 1, 2], "the row that the crash cut off is left out"
    writer = writers.JsonlWriter(path)
    writer.rewind(1, mark)
    writer.write(2, {"train/loss": 2.25})
    writer.close()
    assert writers.read(path) == [{"step": 1, "train/loss": 2.5}, {"step": 2, "train/loss": 2.25}]


def a_file(path, count=4):
    """A writer of rows 1 to `count`, and its mark."""
    writer = writers.JsonlWriter(path)
    for step in range(1, count + 1):
        writer.write(step, {"train/loss": 1 / step})
    return writer, writer.mark()


def steps(path):
    return [row["step"] for row in writers.read(path)]


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_a_file_that_was_cut_between_two_runs_keeps_its_whole_rows_and_says_so(tmp_path, where, caplog):
    path = tmp_path / "metrics.jsonl"
    writer, mark = a_file(path)
    writer.close()
    path.write_bytes(path.read_bytes()[: int(where * mark["bytes"])])
    whole = path.read_bytes().count(b"\n")
    writer = writers.JsonlWriter(path)
    writer.rewind(4, mark)
    writer.write(5, {"train/loss": 0.2})
    writer.close()
    assert steps(path) == [*range(1, whole + 1), 5], "the next row is a line of its own"
    assert f"is not as it was at checkpoint 4: {whole} whole rows up to there are kept, of 4 then" in caplog.text


def test_a_line_overwritten_in_the_middle_costs_that_line_and_no_row_is_kept_twice(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    writer, mark = a_file(path)
    for step in (5, 6):
        writer.write(step, {"train/loss": 0.1})
    writer.close()
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\x00\xff\xfe"
    path.write_bytes(b"\n".join(lines))
    assert steps(path) == [1, 3, 4, 5, 6]
    assert f"{path}: 1 of 6 lines are damaged and left out, the first of them line 2" in caplog.text
    writer = writers.JsonlWriter(path)
    writer.rewind(4, mark)
    writer.write(5, {"train/loss": 0.2})
    assert steps(path) == [1, 3, 4, 5]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\n".join(lines)
    writer.rewind(5, writer.mark())
    assert steps(path) == [1, 3, 4, 5]
    writer.close()


def test_a_file_that_is_removed_or_replaced_while_the_job_runs_is_written_again(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    writer, _ = a_file(path)
    path.unlink()
    writer.write(5, {"train/loss": 0.2})
    assert steps(path) == [1, 2, 3, 4, 5] and "was removed while the job ran" in caplog.text
    (tmp_path / "other").write_text("mine\n")
    (tmp_path / "other").rename(path)
    mark = writer.mark()
    assert steps(path) == [1, 2, 3, 4, 5] and (tmp_path / "metrics.jsonl.damaged").read_text() == "mine\n"
    writer.write(6, {"train/loss": 0.1})
    writer.rewind(5, mark)
    assert steps(path) == [1, 2, 3, 4, 5]
    writer.close()


def test_a_file_that_is_cut_while_the_job_runs_loses_what_was_cut_and_says_so(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    writer, _ = a_file(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    writer.write(5, {"train/loss": 0.2})
    assert steps(path) == [1, 2, 3, 5]
    assert "was cut while the job ran: it holds 3 rows, and held 4" in caplog.text
    mark = writer.mark()
    writer.write(6, {"train/loss": 0.2})
    writer.rewind(5, mark)
    assert steps(path) == [1, 2, 3, 5]
    writer.close()


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00\x01", b"[1]\n", b'{"loss": 1}\n', b'{"step": 1, "a": []}\n', b"1\n"]
)
def test_what_holds_no_row_gives_none(tmp_path, content, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert writers.read(tmp_path / "metrics.jsonl") == []
    assert bool(caplog.messages) == bool(content)


def test_a_file_that_is_not_there_has_no_rows(tmp_path, caplog):
    assert writers.read(tmp_path / "metrics.jsonl") == []
    assert "cannot be read, so there are no rows" in caplog.text


def test_a_mark_of_an_earlier_version_is_a_number_of_bytes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer, mark = a_file(path)
    writer.write(5, {"train/loss": 0.2})
    writer.rewind(4, mark["bytes"])
    assert steps(path) == [1, 2, 3, 4]
    writer.close()


def test_rows_are_on_disk_at_once_and_all_are_forgotten_from_the_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path)
    writer.write(1, {"train/loss": 2.5})
    assert json.loads(path.read_text()) == {"step": 1, "train/loss": 2.5}
    writer.rewind(0, 0)
    assert path.read_text() == ""
    writer.close()


def test_several_writers_get_every_row_and_the_first_gives_the_mark(tmp_path):
    first, second = writers.JsonlWriter(tmp_path / "a"), writers.JsonlWriter(tmp_path / "b")
    both = writers.Writers([first, second])
    second.write(0, {"only": "here"})
    both.write(1, {"train/loss": 1.0})
    assert both.mark() == first.mark() != second.mark()
    both.close()
    assert writers.read(tmp_path / "a") == [{"step": 1, "train/loss": 1.0}] == writers.read(tmp_path / "b")[1:]
    assert writers.Writers(()).mark() == 0


def test_tensorboard_forgets_what_a_restart_repeats(tmp_path):
    from tensorboardX.proto import event_pb2

    writer = writers.TensorBoardWriter(tmp_path)
    writer.write(1, {"train/loss": 2.5, "val/protocol": "top-1"})
    writer.mark()
    writer.close()
    writer = writers.TensorBoardWriter(tmp_path)
    writer.rewind(1, 0)
    writer.write(2, {"train/loss": 2.0})
    writer.close()
    events = []
    for file in sorted(tmp_path.glob("events*")):
        content = file.read_bytes()
        while content:  # a record: 8 bytes of length, 4 of its checksum, the event, 4 of its checksum
            length = int.from_bytes(content[:8], "little")
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in events
        for value in event.summary.value
        if value.HasField("simple_value")
    }
    assert scalars == {(1, "train/loss"): 2.5, (2, "train/loss"): 2.0}
    assert [event.step for event in events if event.session_log.status == event.session_log.START] == [2]


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identities = []
    for step in (1, 2):
        writer = writers.WandbWriter(tmp_path, {"seed": 0}, project="test")
        writer.write(step, {"train/loss": 1.0})
        identities.append((tmp_path / "wandb_id").read_text())
        writer.close()
    assert identities[0] == identities[1]
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert runs and all(identities[0] in run.name for run in runs)


@pytest.mark.parametrize(
    ("module", "make", "message"),
    [
        ("tensorboardX", lambda at: writers.TensorBoardWriter(at), r"log\.tensorboard: .*'vitvlm\[tensorboard\]'"),
        ("wandb", lambda at: writers.WandbWriter(at, {}), r"log\.wandb: wandb is not installed; .*'vitvlm\[wandb\]'"),
    ],
)
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, module, make, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=message):
        make(tmp_path)


class Clock:
    """Stands in for time.perf_counter."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("vitvlm.training.speed.time.perf_counter", lambda: self.now)


def test_rates_leave_out_the_first_step_and_pauses(monkeypatch):
    clock = Clock(monkeypatch)
    speed = Speed(batch_size=32, flops_per_step=1e9, peak_flops=1e10)
    assert speed.lap(0) == {} and speed.remaining(5) is None
    clock.now += 60  # compiling
    speed.start(1)
    with speed.waiting():
        clock.now += 1
    clock.now += 7
    with speed.paused():
        clock.now += 1000
    speed.start(3)
    assert speed.lap(5) == {
        "time/images_per_second": 32 / 2,
        "time/step_seconds": 2.0,
        "time/input_share": 1 / 8,
        "time/mfu": 1e9 / 2 / 1e10,
    }
    assert speed.remaining(10) == 20
    assert speed.lap(5) == {}
    clock.now += 3
    assert speed.lap(6)["time/input_share"] == 0


def test_no_mfu_without_a_known_peak(monkeypatch):
    clock = Clock(monkeypatch)
    speed = Speed(batch_size=1, flops_per_step=1e9, peak_flops=None)
    speed.start(0)
    clock.now += 1
    assert "time/mfu" not in speed.lap(1)


class Device:
    def __init__(self, kind, platform="tpu"):
        self.device_kind, self.platform, self.process_index = kind, platform, 0


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [("TPU v5 lite", 197), ("TPU v5p", 459), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-40GB", 312)],
)
def test_peak_of_known_devices(kind, teraflops):
    assert peak_flops.peak([Device(kind)] * 4) == 4 * teraflops * 1e12


def test_peak_of_an_unknown_device_is_unknown():
    assert peak_flops.peak([Device("Abacus 1", "gpu")]) is None


def test_peak_of_simulated_cpus_is_that_of_one_processor(monkeypatch):
    monkeypatch.setattr(peak_flops, "_measured", lambda devices: 1e11)
    assert peak_flops.peak([Device("cpu", "cpu")] * 8) == 1e11


def test_peak_of_this_cpu_is_measured():
    assert 1e8 < peak_flops.peak(jax.devices("cpu")) < 1e14


ROW = {
    "train/accuracy": 0.5,
    "train/grad_norm": 3.0,
    "train/loss": 1.25,
    "time/images_per_second": 1234.5,
    "time/mfu": 0.42,
    "time/input_share": 0.07,
}


def shown(terminal: bool, **options) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=150, color_system=None, highlight=False)
    with Progress(200, lines_every=50, console=console, **options) as progress:
        progress.note("12,345 parameters [frozen]")
        for step in range(1, 101):
            progress.step(step, ROW if step % 50 == 0 else {"train/loss": 1.0}, 3725.0)
        progress.evaluation(100, {"val/accuracy": 0.5, "val/protocol": "top-1", "time/val_seconds": 2.0})
    return output.getvalue()


def test_one_line_every_few_steps_where_there_is_no_terminal():
    assert shown(terminal=False).splitlines() == [
        "12,345 parameters [frozen]",
        "step 50/200 · loss 1.2500 · accuracy 50.0% · 1,234 images/s · MFU 42.0% · waiting for data 7% · ETA 1:02:05",
        "step 100/200 · loss 1.2500 · accuracy 50.0% · 1,234 images/s · MFU 42.0% · waiting for data 7% · ETA 1:02:05",
        "step 100/200 · val: accuracy 0.5 · 2.0 s",
    ]


def test_live_line_on_a_terminal():
    text = shown(terminal=True)
    last = text.split("\r")[-1]
    assert "━" in last, "a bar"
    assert (
        "step 100/200 · loss 1.2500 · accuracy 50.0% · 1,234 images/s · MFU 42.0% · waiting for data 7% · ETA 1:02:05"
        in last
    )
    assert "step 100/200 · val: accuracy 0.5 · 2.0 s" in text, "evaluations stay above the bar"


def test_other_processes_print_nothing(capsys):
    with Progress(10, lines_every=1, quiet=True) as progress:
        progress.note("hidden")
        progress.step(1, ROW, None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (90061, "25:01:01")])
def test_durations(seconds, text):
    assert duration(seconds) == text
