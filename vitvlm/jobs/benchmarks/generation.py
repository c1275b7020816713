"""Speed of writing text, against `transformers` and llama.cpp with the same GGUF file, alternating in one run.

Every system writes the likeliest tokens after random prompts: once one token, which is the time to the first, and once
some more, of which the difference is the time of the others. Medians of the rounds are reported.
"""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from vitvlm import generation, pretrained
from vitvlm.core.config import ConfigError, suggest
from vitvlm.generation.weights import stored
from vitvlm.jobs.benchmarks import peers, quartiles, tables

Prompts = Sequence[Sequence[int]]
Write = Callable[[Prompts, int], None]  # writes so many tokens after each prompt

OURS = ("float32", "bfloat16", "int8")  # how our weights are stored
PEERS = ("transformers", "llama.cpp")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Times of one system and batch size, in seconds, one per round: of the first token, and of those after it."""

    system: str
    batch_size: int
    first: tuple[float, ...]
    others: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of a run: `prompt` and `tokens` are the length of each prompt, and of what is written after the first."""

    environment: Mapping[str, str]
    weights: str
    prompt: int
    tokens: int
    measured: tuple[Measured, ...]


def measure(
    weights: Path, systems: Sequence[str], batch_sizes: Sequence[int], prompt: int, tokens: int, rounds: int
) -> Report:
    """Measures the systems on a GGUF file, see `in_turn`.

    Raises ConfigError for a system that does not exist, or whose package is not installed.
    """
    with contextlib.ExitStack() as stack:
        loaded = pretrained.load(weights)
        vocabulary = loaded.model.vocab_size
        found = {name: stack.enter_context(_system(name, weights, loaded)) for name in systems}
        rng = np.random.default_rng(0)
        prompts = {B: rng.integers(vocabulary // 10, vocabulary, (B, prompt)).tolist() for B in batch_sizes}
        measured = in_turn(found, prompts, tokens, rounds)
    return Report(_environment(), weights.name, prompt, tokens, measured)


def in_turn(
    systems: Mapping[str, Write], prompts: Mapping[int, Prompts], tokens: int, rounds: int
) -> tuple[Measured, ...]:
    """Measures the systems in turn, after one round for each that is not counted.

    Args:
      prompts: by batch size. tokens: after the first.
    """
    cases = [(name, B) for B in prompts for name in systems]
    times: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for name, B in cases:
            one, more = (_timed(systems[name], prompts[B], count) for count in (1, 1 + tokens))
            if number:
                times[name, B].append((one, more - one))
    return tuple(Measured(*case, *map(tuple, zip(*values))) for case, values in times.items())


def _timed(write: Write, prompts: Prompts, count: int) -> float:
    begun = time.perf_counter()
    write(prompts, count)
    return time.perf_counter() - begun


@contextlib.contextmanager
def _system(name: str, weights: Path, loaded: pretrained.Pretrained) -> Iterator[Write]:
    """Makes what writes, ready to be timed. Raises ConfigError."""
    if name in OURS:
        writer = generation.Writer(stored(loaded, name))
        yield lambda prompts, count: _ours(writer, prompts, count)
    elif name == "transformers":
        yield _transformers(weights)
    elif name == "llama.cpp":
        with _llama_cpp(weights) as write:
            yield write
    else:
        raise ConfigError(f"system {name!r}; {suggest(name, [*OURS, *PEERS])}")


def _ours(writer: generation.Writer, prompts: Prompts, count: int) -> None:
    writer.write_ids(prompts, options_of(count))


def options_of(count: int) -> generation.Options:
    """The likeliest tokens, so many whatever they are."""
    return generation.Options(max_new_tokens=count, stop_ids=())


def _transformers(weights: Path) -> Write:
    """The file read by PyTorch, in float32, with as many threads as there are cores."""
    try:
        import torch

        from vitvlm.jobs.evaluation.language_peer import Peer
    except ImportError as error:
        raise ConfigError(f"the peer transformers: {error}: pip install 'vitvlm[test]'") from None
    torch.set_num_threads(os.cpu_count() or 1)
    model = Peer.of(weights).model
    return lambda prompts, count: peers.generate(model, prompts, count)


@contextlib.contextmanager
def _llama_cpp(weights: Path) -> Iterator[Write]:
    """llama.cpp's server in a process of its own, which is ended with the block."""
    command = [sys.executable, "-m", "vitvlm.jobs.benchmarks.llama_cpp", str(weights)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as process:

        def answer() -> str:
            for line in process.stdout:
                if line.startswith("done"):
                    return line
            raise ConfigError("the peer llama.cpp did not start: pip install xllamacpp")

        def write(prompts: Prompts, count: int) -> None:
            print(json.dumps({"prompts": list(prompts), "count": count}), file=process.stdin, flush=True)
            answer()

        try:
            answer()
            yield write
        finally:
            process.kill()


def _environment() -> dict[str, str]:
    versions = {}
    for package in ("jax", "torch", "transformers", "xllamacpp"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
    } | versions


def table(report: Report) -> Table:
    """A row per system and batch size: tokens per second, and the time to the first token."""
    where = tables.listed(report.environment)
    title = f"{report.weights}: {report.tokens} tokens after prompts of {report.prompt}"
    shown = Table(
        "batch", "system", "tokens/s", "to the first token, ms", "times transformers", title=title, caption=where
    )
    for each in report.measured:
        rates = [each.batch_size * report.tokens / seconds for seconds in each.others]
        shown.add_row(
            str(each.batch_size),
            each.system,
            quartiles.shown(rates, 1),
            quartiles.shown([1000 * seconds for seconds in each.first], 0),
            _against(report, each),
        )
    return shown


def _against(report: Report, measured: Measured) -> str:
    """Returns how many times as fast as transformers it writes, the median of the rounds."""
    for each in report.measured:
        if (each.system, each.batch_size) == ("transformers", measured.batch_size) and each is not measured:
            return f"{np.median([theirs / ours for theirs, ours in zip(each.others, measured.others)]):.2f}"
    return "-"


def as_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report)
