"""Weights as a text or a table in a notebook: what they are, and where their parameters lie."""

import html
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitvlm.core.pages import percent
from vitvlm.core.paths import count_values, flatten
from vitvlm.nn.stacking import unstack_blocks

_BLOCK = re.compile(r"(.*_)\d+$")
_NAMES = 10  # classes that are listed


def facts(loaded: Any) -> dict[str, str]:
    """Collects what is known of weights, a `Pretrained`, by name, in words."""
    leaves = flatten(loaded.variables["params"])
    dtypes = ", ".join(dict.fromkeys(str(np.dtype(leaf.dtype)) for leaf in leaves.values()))
    told = {
        "model": type(loaded.model).__name__,
        "from": f"{loaded.source.get('path', 'memory')} ({loaded.source.get('format', 'made here')})",
        "checkpoint": loaded.source.get("checkpoint", {}).get("name", ""),
        "parameters": f"{count_values(loaded.variables['params']):,}, {dtypes}",
        "images": loaded.preprocessing or "not said how they are prepared",
        "texts": "" if loaded.texts is None else str(loaded.texts.get("tokenizer")),
        "classes": _classes(loaded),
    }
    return {name: text for name, text in told.items() if text}


def parts(variables: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Lists (name, arrays, numbers) of each part of the parameters; blocks that are numbered are one."""
    found: dict[str, tuple[set[str], int, int]] = {}
    for path, leaf in flatten(unstack_blocks({"params": variables["params"]})["params"]).items():
        top = path.split("/")[0]
        name = _BLOCK.sub(r"\1*", top)
        tops, arrays, numbers = found.get(name, (set(), 0, 0))
        found[name] = ({*tops, top}, arrays + 1, numbers + leaf.size)
    return [
        (f"{name} ({len(tops)})" if len(tops) > 1 else name, arrays, numbers)
        for name, (tops, arrays, numbers) in found.items()
    ]


def text(loaded: Any) -> str:
    """Facts, and a table of parameters, in plain text."""
    told = facts(loaded)
    wide = max(map(len, told))
    lines = [f"{name:<{wide}}  {value}" for name, value in told.items()]
    rows = [("part", "arrays", "parameters", "share"), *_rows(loaded)]
    wides = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join([row[0].ljust(wides[0]), *(row[i].rjust(wides[i]) for i in (1, 2, 3))]) for row in rows]
    return "\n".join([*lines, "", *table])


def as_html(loaded: Any) -> str:
    """The same for a notebook."""
    told = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts(loaded).items()
    )
    rows = "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in _rows(loaded)
    )
    head = "<tr><th>part</th><th>arrays</th><th>parameters</th><th>share</th></tr>"
    return f"<table><tbody>{told}</tbody></table><table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _rows(loaded: Any) -> list[tuple[str, str, str, str]]:
    total = count_values(loaded.variables["params"])
    return [
        (name, f"{arrays:,}", f"{numbers:,}", percent(numbers / total if total else 0.0))
        for name, arrays, numbers in parts(loaded.variables)
    ]


def _classes(loaded: Any) -> str:
    count = loaded.model.num_classes
    if not count:
        return ""
    if loaded.class_names is None:
        return f"{count:,}, without names"
    more = ", …" if count > _NAMES else ""
    return f"{count:,}: {', '.join(loaded.class_names[:_NAMES])}{more}"
