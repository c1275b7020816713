"""Running a plan ahead of its consumer in a thread or in worker processes, by Grain."""

import multiprocessing.connection
import os
import signal
import threading
from typing import Any

import grain
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from vitvlm.data.plans import EvalPlan, TrainPlan
from vitvlm.data.streams import StreamPlan


def iterate(plan: TrainPlan | EvalPlan, workers: int, start: int) -> grain.DatasetIterator:
    """Batches from step `start` on, made ahead, two in each thread or worker."""
    batches = grain.MapDataset.source(plan)[start:]
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterable = batches.to_iter_dataset(reading)
    return iter(_in_workers(iterable, workers) if workers else iterable)


def stream(plan: StreamPlan, workers: int, state: dict[str, Any] | None) -> grain.DatasetIterator:
    """Batches from a state on (an iterator's `get_state`; None for the start), made ahead likewise."""
    ahead = _in_workers(plan, workers) if workers else ThreadPrefetchIterDataset(plan, prefetch_buffer_size=2)
    batches = iter(ahead)
    if state is not None:
        batches.set_state(state)
    return batches


def _in_workers(iterable: grain.IterDataset, workers: int) -> grain.IterDataset:
    if not flags.FLAGS.is_parsed():  # as a library; under absl's app.run they are
        flags.FLAGS.mark_as_parsed()
    return iterable.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2), _start_worker)


def _start_worker(index: int, count: int) -> None:
    """A worker lives as long as its parent: no longer, also if that is killed, and no shorter.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group; the parent alone decides what they mean.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
