"""Predicts a user's images: a table on the terminal, or a file that a second run goes on with, and a page."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vitvlm import pretrained
from vitvlm.core import pages
from vitvlm.core.config import ConfigError
from vitvlm.data.sources import Subset
from vitvlm.data.sources.given import Pictures, one_line
from vitvlm.jobs.predict import calibrate, gallery
from vitvlm.jobs.predict.records import Records
from vitvlm.pretrained.predicting import Prediction, Request, stream

HELD_OUT = "held-out"
_NAMED = 5  # broken images that are named at the end


@dataclasses.dataclass(frozen=True)
class Job:
    """Names the images and the weights of a prediction, and where its results go.

    Attributes:
      weights: what `pretrained.load` reads; fields: what it takes besides, such as step.
      images: places of images, see `sources.given.Pictures`; stdin: the lines of the standard input.
      request: what is asked of the model. temperature: a number, or "held-out".
      held_out: labelled images for that; by default the training's own evaluation split.
      out: a .csv or .jsonl; None for a table on the terminal.
      page: an .html file, or None.
      page_images: the most pictures on it.
    """

    weights: str
    images: Sequence[str]
    request: Request = dataclasses.field(default_factory=Request)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    stdin: Iterable[str] = ()
    temperature: str | float = 1.0
    held_out: str = ""
    out: str | None = None
    page: str | None = None
    page_images: int = gallery.MOST


def run(job: Job, console: Console | None = None) -> list[Prediction]:
    """Predicts, and returns what was predicted now or before, in the order of the images.

    Raises ConfigError or DataError with one line that says what to do; nothing is raised for an image that cannot be
    read, which is named and counted.
    """
    console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
    if job.request.features and job.out is None:
        raise ConfigError("--features: give --out, a file: the embeddings lie beside it")
    source = Pictures(job.images, job.stdin)
    for account in source.files:
        console.print(str(account), soft_wrap=True)
    try:
        loaded = pretrained.load(job.weights, **job.fields)
    except pretrained.WeightsError as error:
        raise ConfigError(f"--weights: {error}") from error
    if name := loaded.source.get("checkpoint", {}).get("name"):
        console.print(f"{job.weights}: {name}", soft_wrap=True)
    request, calibrated = _calibrated(job, loaded, console)
    records = None
    if job.out is not None:
        records = Records(job.out, _settings(job, loaded, request), request.top, request.features)
        if records.done:
            console.print(f"{job.out}: goes on behind the {len(records.done):,} images that are there")
    done = records.done if records else set()
    left = [place for place, name in enumerate(source.ids) if name not in done]
    made = []
    if left:
        some = Subset(source, left, source.name) if len(left) < len(source) else source
        for batch in _followed(stream(loaded, some, request), len(source), len(source) - len(left), console):
            made += batch
            if records is not None:
                records.add(batch)
    found = {one.image: one for one in ([*records.read()] if records else made)}
    ordered = [found[name] for name in source.ids]
    _say(ordered, len(left), job, console)
    if job.page is not None:
        title = f"{len(ordered):,} images, as {_short(job.weights)} sees them"
        protocol = f"{job.weights}: {type(loaded.model).__name__}; {name + '; ' if name else ''}{calibrated}"
        classified = any(one.classes for one in ordered)
        gallery.write(Path(job.page), ordered, source, title, protocol, job.page_images, classified)
        console.print(f"page: {job.page}", soft_wrap=True)
    return ordered


def _calibrated(job: Job, loaded: pretrained.Pretrained, console: Console) -> tuple[Request, str]:
    """The request with its temperature, and words about it."""
    if job.temperature != HELD_OUT:
        try:
            temperature = float(job.temperature)
        except ValueError:
            raise ConfigError(f"--temperature={job.temperature}: give a number, or {HELD_OUT}") from None
        if job.held_out:
            raise ConfigError(f"--held_out: goes with --temperature={HELD_OUT}")
        said = "probabilities as the model gives them" if temperature == 1 else f"temperature {temperature:g}"
        return dataclasses.replace(job.request, temperature=temperature), said
    if job.request.classes:
        raise ConfigError(f"--temperature={HELD_OUT}: calibrates the classes of a head, not words: give a number")
    with console.status(f"fitting the temperature on {job.held_out or 'held-out images'}"):
        found, said = calibrate.fit(loaded, job.held_out, job.request)
    console.print(said, soft_wrap=True)
    return dataclasses.replace(job.request, temperature=found.temperature), said


def _settings(job: Job, loaded: pretrained.Pretrained, request: Request) -> dict[str, Any]:
    """Collects what the predictions depend on."""
    how = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    for name in ("batch_size", "workers"):
        del how[name]
    how["preprocessing"] = how["preprocessing"] or loaded.preprocessing
    step = loaded.source.get("checkpoint", {}).get("step")
    return {"weights": job.weights, "checkpoint": step, "fields": job.fields, **how}


def _followed(
    batches: Iterator[list[Prediction]], total: int, done: int, console: Console
) -> Iterator[list[Prediction]]:
    """The batches, with a bar that counts images and those that cannot be read."""
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[broken]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task, broken = progress.add_task("images", total=total, completed=done, broken=""), 0
        for batch in batches:
            yield batch
            broken += sum(bool(one.error) for one in batch)
            told = f"{broken:,} cannot be read" if broken else ""
            progress.update(task, advance=len(batch), broken=told)


def _say(ordered: Sequence[Prediction], now: int, job: Job, console: Console) -> None:
    """The end: how many, which could not be read, where the file is; without a file the table."""
    if job.out is None:
        Console(highlight=False).print(_table(ordered, job.request.top))
    broken = [one for one in ordered if one.error]
    where = f"; all are in {job.out}" if job.out else ""
    console.print(f"{now:,} of {len(ordered):,} images predicted now{where}", soft_wrap=True)
    if broken:
        named = "; ".join(f"{one.image}: {one.error}" for one in broken[:_NAMED])
        more = f"; and {len(broken) - _NAMED:,} more" if len(broken) > _NAMED else ""
        console.print(f"{len(broken):,} of {len(ordered):,} images cannot be read: {named}{more}", soft_wrap=True)


def _table(ordered: Sequence[Prediction], top: int) -> Table:
    shown = Table("image", "class", "others", box=None, pad_edge=False)
    for one in ordered:
        first, *rest = [f"{one_line(name)} {pages.percent(share)}" for name, share in one.classes] or [one.error]
        shown.add_row(Text(one.image, overflow="fold"), Text(first), Text(", ".join(rest)))
    return shown


def _short(weights: str) -> str:
    return Path(weights).name or weights
