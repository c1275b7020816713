"""The page of a workdir, `index.html`: how far its training is, evaluations in words, curves, pictures and config."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from vitvlm.core import own_files, pages
from vitvlm.evaluation import words

NAME = "index.html"
EVALUATIONS = "evaluations"
PICTURES = {"curves.png": "Curves", "batch.png": "The first training batch"}
LARGEST = 4 * 2**20  # bytes of a picture that is put into the page

Metrics = Mapping[str, float]


class Result(NamedTuple):
    """An evaluation's newest result: its figures in words, its protocol, and links to its page and pictures."""

    name: str
    step: int
    figures: list[tuple[str, str, str]]
    protocol: str
    links: list[tuple[str, str]]


def write(
    folder: epath.Path, title: str, state: str, facts: Sequence[tuple[str, str]], config: Mapping[str, Any]
) -> epath.Path:
    """Writes the page of a workdir from what lies there, and returns its path.

    Args:
      title: the job.
      state: how far it is, in a sentence.
      facts: name and value of what is known of it.
      config: as the workdir keeps it.
    """
    results = newest(folder)
    columns, history = by_step(folder)
    html = pages.render(
        "vitvlm.jobs.training",
        "page.html",
        title=title,
        state=state,
        facts=facts,
        results=results,
        columns=columns,
        history=history,
        pictures=_pictures(folder, results),
        config=json.dumps(config, indent=2, ensure_ascii=False),
    )
    path = folder / NAME
    path.write_text(html)
    return path


def newest(folder: epath.Path) -> list[Result]:
    """The newest result of each evaluation of a workdir, by name."""
    found: dict[str, Result] = {}
    for step, name, place, own in _results(folder):
        links = [
            (file.name, str(file.relative_to(folder)))
            for file in sorted(place.iterdir())
            if file.suffix in (".html", ".png", ".csv")
        ]
        found[name] = Result(name, step, words.figures(own["metrics"]), own["protocol"], links)
    return [found[name] for name in sorted(found)]


def by_step(folder: epath.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The headline of each evaluation as a column, and of each step the row of their values; "" where there is none."""
    titles: dict[str, str] = {}
    values: dict[int, dict[str, str]] = {}
    for step, name, _, own in _results(folder):
        metric = words.headline(own["metrics"])
        if metric is not None:
            titles[name] = f"{name}, {words.in_words(metric)}"
            values.setdefault(step, {})[name] = words.value_of(metric, own["metrics"][metric])
    names = sorted(titles)
    rows = [(step, [row.get(name, "") for name in names]) for step, row in sorted(values.items())]
    return [titles[name] for name in names], rows


def _results(folder: epath.Path) -> list[tuple[int, str, epath.Path, Mapping[str, Any]]]:
    """Lists (step, name, folder, result) of every evaluation in a workdir, in the order of the steps."""
    found = []
    places = [place for place in (folder / EVALUATIONS).glob("*") if place.name.isdigit()]
    for place in sorted(places, key=lambda place: int(place.name)):
        for file in sorted(place.glob("*/result.json")):
            own = own_files.read(file, "metrics", "protocol")
            if own is not None:
                found.append((int(place.name), file.parent.name, file.parent, own))
    return found


def _pictures(folder: epath.Path, results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """Lists (file, caption, address) of the workdir's pictures and of those of the newest evaluations."""
    found = [(name, caption) for name, caption in PICTURES.items()]
    for result in results:
        found += [
            (link, f"{result.name}, step {result.step:,}") for name, link in result.links if name.endswith(".png")
        ]
    return [
        (name, caption, pages.data_uri((folder / name).read_bytes()))
        for name, caption in found
        if (folder / name).is_file() and (folder / name).stat().length <= LARGEST
    ]
