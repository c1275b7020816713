"""Output of a training for people: its curves, its page, and the lines at its end that say where to look."""

import logging
from collections.abc import Callable, Mapping

from etils import epath

from vitvlm.core.paths import count_values
from vitvlm.data.batches import TrainBatches, left_out
from vitvlm.evaluation import words
from vitvlm.jobs.training import curves, page
from vitvlm.jobs.training.setup import Setup
from vitvlm.training import records, writers

_LOG = logging.getLogger(__name__)


def title(job: Setup, folder: epath.Path) -> str:
    """The job in a line: its workdir, what it trains, and on what."""
    task, model = job.config["task"]["name"], job.model.section["name"]
    return f"{folder.name}: {task} with {model} on {job.data.source.name}"


def draw(job: Setup, folder: epath.Path) -> None:
    """Draws curves.png and index.html, once there is something to show.

    A picture is no reason to fail a training: errors are lines in the log.
    """
    if not (folder / "metrics.jsonl").exists() or not writers.read(folder / "metrics.jsonl"):
        return
    name = title(job, folder)
    draw_curves(folder, name)
    _try(folder, page.NAME, lambda: page.write(folder, name, state(job, folder), facts(job), job.config))


def draw_curves(folder: epath.Path, name: str = "") -> None:
    """Draws curves.png; an error is a line in the log."""
    _try(folder, curves.NAME, lambda: curves.save(folder, name))


def state(job: Setup, folder: epath.Path) -> str:
    """Says how far the training is, in a sentence."""
    steps = [row["step"] for row in writers.read(folder / "metrics.jsonl") if "train/loss" in row]
    done, total = max(steps, default=0), job.training.clock.total_steps
    if done >= total:
        return f"Finished: all {total:,} steps are done."
    return f"Stopped at step {done:,} of {total:,} at the latest; the same command goes on from the newest checkpoint."


def facts(job: Setup) -> list[tuple[str, str]]:
    """Name and value of what is known of a training before its first step."""
    learning = count_values(job.training.state_shapes.params)
    total, size = job.training.clock.total_steps, job.data.batch_size
    return [
        ("parameters", f"{job.model.parameter_count:,}"),
        *([("trained", f"{learning:,}")] if learning != job.model.parameter_count else []),
        ("training data", f"{job.data.source.name} ({job.data.source})"),
        ("steps", f"{total:,}"),
        ("batch size", f"{size:,}"),
        ("forward pass", f"{job.model.forward_flops / 1e9:.3g} GFLOPs per image"),
    ]


def ending(job: Setup, folder: epath.Path, metrics: Mapping[str, writers.Value], before: bool) -> list[str]:
    """Lines that say that a training is at its end, with its scores and where to look.

    Args:
      metrics: those at its last step, "test/top1" and so on.
      before: whether it was at its end already, and nothing was left to do.
    """
    total = job.training.clock.total_steps
    lines = [
        f"finished{' before' if before else ''}: all {total:,} steps of config.total={job.training.section.total!r}"
    ]
    for group in sorted({name.rpartition("/")[0] for name in metrics}):
        own = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.rpartition("/")[0] == group}
        lines.append(f"{group}: {words.sentence(own)}")
    looks = [folder / page.NAME, folder / curves.NAME]
    looks += [folder / link for result in page.newest(folder) for name, link in result.links if name.endswith(".html")]
    lines.append(f"look at {', '.join(str(path) for path in looks if path.exists())}")
    if before:
        lines.append("to train longer, give a longer --config.total; to change other fields, --continue_as=NEWDIR")
    return lines


def unread(batches: TrainBatches) -> list[str]:
    """Lines about what of the training data could not be used: each file is counted once."""
    lines = [left_out(batches.dropped)] if batches.dropped else []
    if batches.bad.count:
        files = len(batches.bad.names)
        met = f", met {batches.bad.count:,} times in {batches.bad.seen:,}" if batches.bad.count > files else ""
        skipped = f"; {batches.skipped} batches without a readable one were skipped" if batches.skipped else ""
        lines.append(f"{files:,} {'image' if files == 1 else 'images'} could not be read{met}: {batches.bad}{skipped}")
    return lines


def _try(folder: epath.Path, name: str, make: Callable[[], object]) -> None:
    try:
        make()
    except Exception as error:
        _LOG.warning("%s: %s could not be drawn: %s", folder, name, records.line(error))
