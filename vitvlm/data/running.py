"""Running a plan ahead of its consumer in a thread or in worker processes, by Grain."""

import multiprocessing.connection
import os
import signal
import threading

import grain
from absl import flags

from vitvlm.data.plans import EvalPlan, TrainPlan


def iterate(plan: TrainPlan | EvalPlan, workers: int, start: int) -> grain.DatasetIterator:
    """Batches from step `start` on, made ahead, two in each thread or worker."""
    batches = grain.MapDataset.source(plan)[start:]
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterable = batches.to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():  # as a library; under absl's app.run they are
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2), _start_worker)
    return iter(iterable)


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
