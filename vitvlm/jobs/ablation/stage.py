"""One stage of one variant, in a process of its own: `python -m vitvlm.jobs.ablation.stage FOLDER`.

The process is the variant's alone, so its peak memory is the variant's own, nothing compiled or cached by another is
in it, and a crash ends only this row. FOLDER is the training's workdir; `stage.json` in it holds the config.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from vitvlm.core import own_files
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import count_values
from vitvlm.jobs import fields
from vitvlm.jobs.launch import EXPECTED
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import stages, train
from vitvlm.jobs.training.setup import TrainingSetup, setup
from vitvlm.nn.patches import patch_grid
from vitvlm.training import writers
from vitvlm.training.interrupts import EXIT_STATUS, Interrupted
from vitvlm.training.workdir import began, latest_stage

STAGE, OUTCOME, FAILURE = "stage.json", "outcome.json", "failure.json"
Json = dict[str, Any]


class StageFailed(RuntimeError):
    """A stage that did not come to its end; `details` is the traceback, if there is one."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


def run_apart(config: Mapping[str, Any], folder: epath.Path, **flags_of_train: bool) -> Json:
    """Trains in a fresh process and returns its outcome: metrics, facts (of the model) and measured (of the run).

    `flags_of_train` are `force` and `accept_changed_data` of `train.train`.

    Raises StageFailed, and Interrupted when the training was stopped by a signal and has saved its state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAGE).write_text(json.dumps(config, indent=2) + "\n")
    for name in (OUTCOME, FAILURE):
        (folder / name).unlink(missing_ok=True)
    given = [f"--{name}" for name, value in flags_of_train.items() if value]
    status, stopped = _run_child([sys.executable, "-m", "vitvlm.jobs.ablation.stage", str(folder), *given])
    if stopped or status in (EXIT_STATUS, -signal.SIGTERM, -signal.SIGINT):
        raise Interrupted(f"stopped in {folder}: run the same command again to go on")
    if status == 0:
        outcome = own_files.read(folder / OUTCOME, "metrics", "facts", "measured")
        if outcome is None:
            raise StageFailed(f"it ended well, but its {OUTCOME} in {folder} is gone or damaged: run the sweep again")
        return outcome
    failure = own_files.read(folder / FAILURE, "message", "details") if (folder / FAILURE).exists() else None
    if failure is not None:
        raise StageFailed(failure["message"], failure["details"])
    if status == -signal.SIGKILL:
        raise StageFailed("killed (SIGKILL), probably for lack of memory: use a smaller batch_size, or accumulate")
    raise StageFailed(f"its process ended with status {status} and left no message")


def _run_child(command: list[str]) -> tuple[int, bool]:
    """Runs a process; returns its exit status, and whether this one received SIGTERM or SIGINT meanwhile.

    Both signals are passed on, and a training then saves and ends; this process waits for it. The child has a session
    of its own, so that a terminal's Ctrl-C reaches it once.
    """
    received: list[int] = []
    child: subprocess.Popen | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    watched = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, forward) for number in watched}
    try:
        child = subprocess.Popen(command, start_new_session=True)
        if received:
            child.send_signal(received[-1])
        while child.poll() is None:  # a blocking wait may not notice a signal that another thread was given
            time.sleep(0.1)
        return child.returncode, bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(config: Mapping[str, Any], folder: epath.Path, **flags_of_train: bool) -> Json:
    """Trains here, with what it costs before and after; FLOPs and steps are those of all stages of the config.

    Raises ConfigError for a training that began with another length: variants are compared at equal schedules.
    """
    before = began(folder) or config
    if before.get("total") != config.get("total"):
        raise ConfigError(
            f"{folder} began with total={before.get('total')!r}, and this sweep has {config.get('total')!r}: variants "
            "are compared at equal schedules: choose another --workdir, or set the budget back"
        )
    parts = stages.configs(config).values() if fields.STAGES in config else [config]
    each = [facts(setup(part).training) for part in parts]
    described = each[-1] | {name: sum(part[name] for part in each) for name in ("total_flops", "steps", "examples")}
    metrics = stages.train(config, folder, **flags_of_train)
    return {"metrics": metrics, "facts": described, "measured": measured(latest_stage(folder))}


def facts(training: TrainingSetup) -> dict[str, float]:
    """Returns the costs of a training that follow from its config alone.

    These are the number of parameters, and of those that train unless all do; forward FLOPs per image and training
    FLOPs in all (analytic); steps and examples; and step bytes, the peak memory of the compiled training step on each
    device as the compiler plans it. For patch models also the tokens of an image, and the tokens that the encoder sees
    while training, CLS, distillation token and registers included.
    """
    model, steps = training.model, training.clock.total_steps
    found = {
        "parameters": float(model.parameter_count),
        "forward_flops": float(model.forward_flops),
        "total_flops": train.step_flops(training) * steps,
        "steps": float(steps),
        "examples": float(steps * training.section.batch_size),
    }
    learning = count_values(training.state_shapes.params)
    if learning < model.parameter_count:
        found["trained_parameters"] = float(learning)
    return found | _tokens(model) | _step_bytes(training)


def measured(folder: epath.Path) -> dict[str, float]:
    """Returns the costs that this process measured: median step time and peak memory.

    The median is over the rows of metrics.jsonl, each a mean over log.every steps. Memory is the resident memory of the
    process (data and compiler included) and, where devices count it, the largest of a device.
    """
    rows = writers.read(folder / "metrics.jsonl")
    seconds = [value for _, value in writers.numbers(rows, "time/step_seconds")]
    kilobyte = 1 if sys.platform == "darwin" else 1024
    found = {"process_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte)}
    if seconds:
        found["step_seconds"] = statistics.median(seconds)
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    if all(peaks):
        found["device_bytes"] = float(max(peaks))
    return found


def _tokens(setup: ModelSetup) -> dict[str, float]:
    model = setup.task.model
    encoder = model.image_encoder
    if encoder.patch is None:
        return {}
    h, w = grid = patch_grid(setup.example_batch["image"].shape[1:3], encoder.patch)
    return {"tokens": float(h * w), "encoder_tokens": float(model.tokens_in_training(grid) + encoder.prefix_count)}


def _step_bytes(training: TrainingSetup) -> dict[str, float]:
    """Arguments, outputs and temporaries of the compiled step, less what it reuses in place."""
    batch = {
        name: jax.ShapeDtypeStruct((training.section.batch_size, *np.shape(value)[1:]), value.dtype)
        for name, value in training.model.example_batch.items()
    }
    memory = train.compiled_step(training).lower(training.target, batch).compile().memory_analysis()
    if memory is None:
        return {}
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {"step_bytes": float(parts - memory.alias_size_in_bytes)}


def main(arguments: list[str]) -> int:
    """Runs the stage of a folder; writes outcome.json, or failure.json."""
    threading.Thread(target=_stop_with_parent, args=[os.getppid()], daemon=True).start()
    folder = epath.Path(arguments[0])
    flags.FLAGS(["stage"])
    try:
        given = {name.removeprefix("--"): True for name in arguments[1:]}
        outcome = run(json.loads((folder / STAGE).read_text()), folder, **given)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return EXIT_STATUS
    except Exception as error:
        message = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        details = "" if isinstance(error, ConfigError) else traceback.format_exc()
        failure = {"message": " ".join(message.split()), "details": details}
        (folder / FAILURE).write_text(json.dumps(failure, indent=2) + "\n")
        return 1
    (folder / OUTCOME).write_text(json.dumps(outcome, indent=2) + "\n")
    return 0


def _stop_with_parent(parent: int) -> None:
    """Saves and ends once the sweep is gone: started again, it could not have this folder otherwise."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
