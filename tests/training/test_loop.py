"""The loop: the order of events, metrics one step late, and how it ends when something goes wrong."""

import functools
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy

from vitvlm.core.config import ConfigError
from vitvlm.training import loop, resume, writers
from vitvlm.training.best import Best
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.interrupts import EXIT_STATUS, Interrupted, Interrupts
from vitvlm.training.speed import Speed
from vitvlm.training.state import TrainState

PROGRAM = pathlib.Path(__file__).with_name("toy_training.py")


class Metric:
    """A number that notes when it is brought to the host."""

    def __init__(self, events, step, value=1.0):
        self._events, self._step, self._value = events, step, value

    def __array__(self, *args, **kwargs):
        self._events.append(f"fetch {self._step}")
        return np.asarray(self._value, *args, **kwargs)


class Recorder:
    """Plays every part of a training but the loop, and writes down what is asked of it."""

    def __init__(self, stop_before=None, bad_step=None):
        self.events = []
        self.rows = []
        self.saved = {}
        self._stop_before, self._bad_step = stop_before, bad_step
        self._taken = 0

    # batches
    def __next__(self):
        self._taken += 1
        self.events.append(f"batch {self._taken}")
        return {"number": np.int32(self._taken)}

    def get_state(self):
        return self._taken

    # step
    def step(self, state, batch):
        number = int(state.step) + 1
        assert number == batch["number"], "batch n + 1 belongs to the state after n updates"
        self.events.append(f"step {number}")
        value = np.nan if number == self._bad_step else 1.0
        return state.replace(step=jnp.int32(number)), {"loss": Metric(self.events, number, value)}

    # writer
    def write(self, step, row):
        kind = next(iter(row)).split("/")[0]
        self.events.append(f"write {kind} {step}")
        self.rows.append((step, dict(row)))

    def mark(self):
        return len(self.rows)

    # checkpoints
    def save(self, step, state, *, resume):
        assert int(state.step) == step
        self.events.append(f"save {step}")
        self.saved[step] = (resume, {})

    def add_metrics(self, step, metrics, *, resume):
        self.events.append(f"add {step}")
        self.saved[step] = (resume, self.saved[step][1] | metrics)

    def latest_step(self):
        return max(self.saved, default=None)

    def check(self):
        pass

    def wait(self):
        self.events.append("wait")

    # interrupts
    def requested(self, step):
        return "SIGTERM" if step == self._stop_before else None

    # progress
    def evaluation(self, step, row):
        pass

    def evaluate(self, state, step):
        assert int(state.step) == step
        self.events.append(f"evaluate {step}")
        return {"score": step}


class Bar:
    def step(self, step, row, remaining):
        pass

    def evaluation(self, step, row):
        pass


def state_at(step: int) -> TrainState:
    return TrainState(jnp.int32(step), {}, {}, {}, None, None)


def run(recorder, start=None, *, total_steps, every=0, at_start=False, at_end=True, more=(), **options):
    return loop.fit(
        recorder.step,
        start or resume.Start(state_at(0)),
        recorder,
        total_steps=total_steps,
        place=lambda batch: batch,
        writer=recorder,
        progress=Bar(),
        speed=Speed(1),
        interrupts=recorder,
        evaluations=(*more, loop.Scheduled("val", recorder.evaluate, every=every, at_start=at_start, at_end=at_end)),
        checkpoints=recorder,
        **options,
    )


def test_order_save_evaluate_batch_step_and_metrics_one_step_late():
    recorder = Recorder()
    state = run(recorder, total_steps=5, every=2, at_start=True, save_every=4)
    assert int(state.step) == 5
    assert recorder.events == [
        *("evaluate 0", "write val 0"),
        *("batch 1", "step 1", "batch 2", "step 2", "fetch 1", "write train 1"),
        *("fetch 2", "write train 2", "save 2", "wait", "evaluate 2", "write val 2", "add 2"),
        *("batch 3", "step 3", "batch 4", "step 4", "fetch 3", "write train 3"),
        *("fetch 4", "write train 4", "save 4", "wait", "evaluate 4", "write val 4", "add 4"),
        *("batch 5", "step 5"),
        *("fetch 5", "write train 5", "save 5", "wait", "evaluate 5", "write val 5", "add 5"),
        "wait",
    ]


def test_checkpoint_holds_the_place():
    recorder = Recorder()
    run(recorder, total_steps=4, every=2, save_every=3)
    place, metrics = recorder.saved[3]
    assert place == {"iterators": [{"json": 3}], "written": 4, "evaluated": []} and metrics == {}
    place, metrics = recorder.saved[4]
    assert place == {"iterators": [{"json": 4}], "written": 6, "evaluated": ["val"]} and metrics == {"val/score": 4}


class Broken(Recorder):
    """Recorder whose evaluation fails at some steps."""

    def __init__(self, fails_at):
        super().__init__()
        self.fails_at = fails_at

    def evaluate(self, state, step):
        metrics = super().evaluate(state, step)
        if step in self.fails_at:
            raise RuntimeError("no such neighbours")
        return metrics


def test_the_state_is_on_disk_before_an_evaluation_can_fail():
    """Kind 5 of issue 11: evaluation 20 failed, checkpoint 15 was the last, and a rerun did steps 16 to 20 again."""
    broken = Broken(fails_at=(20,))
    with pytest.raises(RuntimeError, match="no such neighbours"):
        run(broken, total_steps=30, every=20, save_every=15)
    assert broken.events[-3:] == ["save 20", "wait", "evaluate 20"]
    assert broken.saved[20] == ({"iterators": [{"json": 20}], "written": 20, "evaluated": []}, {})
    again = Recorder()
    again._taken, again.saved = 20, broken.saved
    run(again, resume.Start(state_at(20), 20), total_steps=30, every=20, save_every=15)
    assert again.events[:4] == ["wait", "evaluate 20", "write val 20", "add 20"]
    assert again.events[4] == "batch 21"
    assert again.saved[20][0]["evaluated"] == ["val"] and again.saved[20][1] == {"val/score": 20}


def test_each_evaluation_is_noted_as_it_ends():
    """Of two, the second fails: a rerun repeats that one only."""
    broken = Broken(fails_at=(3,))
    fine = loop.Scheduled("fine", lambda state, step: {"score": 1.0})
    with pytest.raises(RuntimeError):
        run(broken, total_steps=3, more=(fine,))
    assert broken.saved[3][0]["evaluated"] == ["fine"] and broken.saved[3][1] == {"fine/score": 1.0}
    again = Recorder()
    again._taken, again.saved = 3, broken.saved
    run(again, resume.Start(state_at(3), 3, ("fine",)), total_steps=3, more=(fine,))
    assert again.events == ["wait", "evaluate 3", "write val 3", "add 3", "wait"]
    assert again.saved[3][0]["evaluated"] == ["fine", "val"]
    assert again.saved[3][1] == {"fine/score": 1.0, "val/score": 3}


def test_begun_is_called_once_after_the_first_step():
    recorder = Recorder()
    run(recorder, total_steps=3, begun=lambda: recorder.events.append("begun"))
    assert recorder.events.index("begun") == recorder.events.index("step 1") + 1
    assert recorder.events.count("begun") == 1


def test_rows_every_few_steps_but_every_step_is_fetched():
    recorder = Recorder()
    run(recorder, total_steps=7, log_every=3, at_end=False)
    assert [event for event in recorder.events if event.startswith("fetch")] == [f"fetch {n}" for n in range(1, 8)]
    assert [step for step, _ in recorder.rows] == [3, 6, 7]
    assert "time/images_per_second" in recorder.rows[0][1]


def test_a_step_without_an_example_has_no_row_and_is_said(monkeypatch):
    recorder, said = Recorder(), []
    monkeypatch.setattr(Bar, "note", lambda self, line: said.append(line), raising=False)
    plain = recorder.step

    def step(state, batch):
        state, metrics = plain(state, batch)
        return state, metrics | {"examples": np.float32(0 if int(state.step) == 2 else 8)}

    monkeypatch.setattr(recorder, "step", step)
    run(recorder, total_steps=4, at_end=False)
    assert [step for step, _ in recorder.rows] == [1, 3, 4]
    assert said == ["step 2: none of the batch's images can be read, so nothing is learned from it"]


@pytest.mark.parametrize("done", [(), ("val",)])
def test_going_on_repeats_only_the_evaluations_that_are_missing(done):
    recorder = Recorder()
    recorder._taken, recorder.saved = 2, {2: ({}, {})}
    run(recorder, resume.Start(state_at(2), 2, done), total_steps=3, every=2, save_every=2)
    assert ("evaluate 2" in recorder.events) == ("add 2" in recorder.events) == (not done)
    assert "save 2" not in recorder.events, "the checkpoint that it came from is there already"


def test_a_finished_training_does_nothing():
    recorder = Recorder()
    run(recorder, resume.Start(state_at(3), 3, ("val",)), total_steps=3)
    assert recorder.events == ["wait"]


def test_interrupt_saves_before_the_evaluation_that_is_due():
    recorder = Recorder(stop_before=2)
    with pytest.raises(Interrupted) as stop:
        run(recorder, total_steps=9, every=2, save_every=5)
    assert stop.value.code == EXIT_STATUS
    assert str(stop.value) == (
        "SIGTERM: stopped after step 2; checkpoint 2 is saved: run the same command again to go on"
    )
    assert recorder.events[-4:] == ["fetch 2", "write train 2", "save 2", "wait"]
    assert recorder.saved[2][0]["evaluated"] == []


@pytest.mark.parametrize(("save_every", "last_good"), [(2, "the last good checkpoint is 4"), (0, "no checkpoint yet")])
def test_nan_stops_with_the_step_the_metric_and_the_last_good_checkpoint(save_every, last_good):
    recorder = Recorder(bad_step=6)
    with pytest.raises(loop.NotFiniteError, match=f"step 6: train/loss is nan; .*{last_good}"):
        run(recorder, total_steps=9, save_every=save_every)
    assert all(step < 6 for step in recorder.saved)
    assert "step 8" not in recorder.events, "only the step that was on its way already"


def test_a_real_nan_leaves_the_last_good_checkpoint(tmp_path):
    class Poisoned(toy.Batches):
        def __next__(self):
            batch = super().__next__()
            if self.taken == 6:
                batch["image"][3] = np.inf
                batch["example_mask"][3] = 1
            return batch

    with pytest.raises(loop.NotFiniteError, match=r"step 6: train/\w+ is (nan|inf); the last good checkpoint is 4"):
        toy.train(tmp_path, 12, Poisoned())
    rows = writers.read(tmp_path / "metrics.jsonl")
    assert max(row["step"] for row in rows) == 5
    target = jax.eval_shape(toy.init)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), target)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore(target)
    assert restored.step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.state.params))


def test_a_misspelt_best_metric_is_named(tmp_path):
    with Checkpoints(tmp_path, best=Best("val/acuracy")) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(3)})
        checkpoints.add_metrics(1, {"other/loss": 1.0}, resume=None)
        with pytest.raises(ConfigError, match=r"best: no metric 'val/acuracy'; did you mean \"val/accuracy\""):
            checkpoints.add_metrics(1, {"val/accuracy": 0.5}, resume=None)


def test_signals_are_noted_once_and_handlers_put_back(request):
    # A test run in the background of a shell may have inherited an ignored SIGINT.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        assert interrupts.requested(0) is None
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested(1) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def rows_without_times(folder: pathlib.Path) -> list[dict]:
    rows = writers.read(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def launch(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    toy.train(folder, 12, toy.Batches())
    return folder


def fingerprints(folder: pathlib.Path, step: int) -> dict:
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return dict(checkpoints.record(step).arrays)


@pytest.mark.parametrize("kill_at", [2, 9])
def test_killed_and_started_again_equals_undisturbed(undisturbed, tmp_path, kill_at):
    """Bit for bit: parameters, optimizer, average, statistics, and all metrics but times."""
    killed = launch(tmp_path, "12", "SIGKILL", str(kill_at))
    assert killed.returncode == -signal.SIGKILL
    toy.train(tmp_path, 12, toy.Batches())
    assert fingerprints(tmp_path, 12) == fingerprints(undisturbed, 12)
    assert {path.split("/")[0] for path in fingerprints(tmp_path, 12)} == {
        *("step", "params", "collections", "opt_state", "ema", "rng")
    }
    assert rows_without_times(tmp_path) == rows_without_times(undisturbed)


def test_sigterm_saves_and_says_so(undisturbed, tmp_path):
    stopped = launch(tmp_path, "12", "SIGTERM", "6")
    assert stopped.returncode == EXIT_STATUS
    last = stopped.stderr.strip().splitlines()[-1]
    assert last == "SIGTERM: stopped after step 6; checkpoint 6 is saved: run the same command again to go on"
    assert "Traceback" not in stopped.stderr
    toy.train(tmp_path, 12, toy.Batches())
    assert fingerprints(tmp_path, 12) == fingerprints(undisturbed, 12)
    assert rows_without_times(tmp_path) == rows_without_times(undisturbed)


def test_a_failing_evaluation_loses_no_step(undisturbed, tmp_path, monkeypatch):
    """The state of step 6 is on disk, and a rerun goes on there, evaluates, and ends as if nothing had happened."""
    validate = toy.validate

    def broken(state, step):
        if step == 6:
            raise RuntimeError("no such neighbours")
        return validate(state, step)

    monkeypatch.setattr(toy, "validate", broken)
    with pytest.raises(RuntimeError, match="no such neighbours"):
        toy.train(tmp_path, 12, toy.Batches())
    monkeypatch.setattr(toy, "validate", validate)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 6
        assert checkpoints.record(6).resume["evaluated"] == [] and checkpoints.record(6).metrics == {}
    batches = toy.Batches()
    toy.train(tmp_path, 12, batches)
    assert batches.taken == 12
    assert fingerprints(tmp_path, 12) == fingerprints(undisturbed, 12)
    assert rows_without_times(tmp_path) == rows_without_times(undisturbed)
