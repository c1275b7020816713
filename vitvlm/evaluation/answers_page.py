"""One page of what a model wrote: the worst and the best answers with image, truth, and answer without the image."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Int

from vitvlm.core import pages
from vitvlm.evaluation import base, page
from vitvlm.evaluation.other_images import BLIND, SAID, SWAPPED

PREFIX = "grounding_"
SIDE = 224  # pixels of the longer side


def write(
    folder: pathlib.Path,
    result: base.Result,
    own: Mapping[str, np.ndarray],
    others: Mapping[str, Mapping[str, np.ndarray]],
    compared: str,
    shown: int,
    picture: page.Picture | None,
    types: Callable[[int], str] = lambda index: "",
) -> base.Result:
    """Writes page.html into the folder with at most `shown` examples, and gives the result with its path.

    Args:
      own: the saved examples, with answer, truth, question, id and what is `compared`; others: those by condition.
      types: an example's type of question.

    Only the first process writes; nothing is written if `shown` is 0 or there are no pictures.
    """
    if not shown or picture is None or jax.process_index():
        return result
    rows = chosen(own[compared], shown)
    places = {
        name: {int(index): row for row, index in enumerate(each["index"])}
        for name, each in others.items()
        if name in (BLIND, SWAPPED)
    }
    examples = []
    for row in rows:
        index = int(own["index"][row])
        example = {
            "id": str(own["id"][row]),
            "image": pages.thumbnail(picture(index), SIDE),
            "type": types(index),
            "score": float(own[compared][row]),
            **{name: str(own[name][row]) for name in ("question", "answer", "truth")},
        }
        for name, found in places.items():
            if (place := found.get(index)) is not None:
                example[name] = {
                    "answer": str(others[name]["answer"][place]),
                    "score": float(others[name][compared][place]),
                }
        examples.append(example)
    total = len(own["index"])
    statement = f"All {total:,} evaluated examples are on this page, the worst first."
    if len(rows) < total:
        statement = (
            f"The evaluated set has {total:,} examples. On this page are the {-(-len(rows) // 2):,} worst and the "
            f"{len(rows) // 2:,} best of them, by {compared}."
        )
    html = pages.render(
        "vitvlm.evaluation",
        "answers.html",
        {"examples": examples, "conditions": list(places), "compared": compared},
        title=f"Answers: {total:,} examples",
        facts=page.facts({name: value for name, value in result.metrics.items() if not name.startswith(PREFIX)}),
        grounding=grounding(result.metrics),
        uses_image=result.metrics.get(f"{PREFIX}uses_image"),
        protocol=result.protocol,
        statement=statement,
        kinds=sorted({each["type"] for each in examples} - {""}),
        conditions=list(places),
    )
    path = pathlib.Path(folder) / page.PAGE
    path.write_text(html, encoding="utf-8")
    return dataclasses.replace(result, page=path)


def grounding(metrics: Mapping[str, float]) -> list[dict[str, str]]:
    """Lists, for each condition that was measured, what it is and its figures, as texts."""
    rows = []
    for name, said in SAID.items():
        start = f"{PREFIX}{name}"
        if start not in metrics:
            continue
        low, high = (metrics[f"{start}_drop_{end}"] for end in ("low", "high"))
        changed = metrics.get(f"{start}_changed")
        rows.append(
            {
                "images": said,
                "score": f"{metrics[start]:.3g}",
                "lost": f"{metrics[f'{start}_drop']:.3g} [{low:.3g}, {high:.3g}]",
                "p": f"{metrics[f'{start}_p']:.2g}",
                "changed": "" if changed is None else pages.percent(changed),
            }
        )
    return rows


def chosen(score: np.ndarray, shown: int) -> Int[np.ndarray, " k"]:
    """Rows of the worst and of the best examples, half each, the worst first; of equal scores the earlier ones."""
    order = np.argsort(score, kind="stable")
    if len(order) <= shown:
        return order
    best = np.argsort(-score, kind="stable")[: shown // 2]
    return np.concatenate([order[: shown - len(best)], best[::-1]])
