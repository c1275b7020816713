"""Fields of configs that were called otherwise: one table, by which old files are read and old names are answered.

A config that an earlier version wrote (config.json of a workdir, a sweep's result.json) is read by `renamed`. A config
that a person writes has to use today's names: `core.config.check_names` tells them which (`new_name`).
"""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

FIELDS: dict[str, str] = {
    "side_by_side": "unroll",
    "data.bad_share": "max_unreadable_fraction",
    "data.texts.name": "field",
    "data.texts.most": "max_texts",
    "model.**.representation": "representation_size",
    "init_from.**.fields.representation": "representation_size",
    "task.distillation.teacher_fields.representation": "representation_size",
    "task.block": "block_size",
    "evals.*.shown": "max_images",
    "evals.*.base_rate": "base_learning_rate",
    "evals.*.held_out": "validation_fraction",
}
"""Old dotted path of a field: the new name of its last part. `*` stands for one name, `**` for any number of them."""

ARGUMENTS: dict[tuple[str, str], str] = {
    ("tokenize", "most"): "max_texts",
    ("tokenize", "name"): "field",
}
"""(operation, old keyword): the new keyword, in the strings of operations ("decode|tokenize('emoji', 8)")."""

_OPERATIONS = "ops"  # the fields that hold such strings


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config that an earlier version wrote, nested plain dictionaries, with every field under today's name.

    Fields that have today's names stay as they are, so a config may be renamed again.
    """
    return _renamed(config, "")


def new_name(name: str, allowed: Iterable[str]) -> str | None:
    """Returns what a field or keyword of an old name is called now, if that is one of the allowed names."""
    allowed = set(allowed)
    fields = ((path.rpartition(".")[2], new) for path, new in FIELDS.items())
    keywords = ((old, new) for (_, old), new in ARGUMENTS.items())
    return next((new for old, new in (*fields, *keywords) if old == name and new in allowed), None)


def _renamed(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = {}
    for name, value in section.items():
        path = f"{where}.{name}" if where else name
        if isinstance(value, Mapping):
            value = _renamed(value, path)
        elif name == _OPERATIONS and isinstance(value, str):
            value = _renamed_keywords(value)
        found[_today(path, name)] = value
    return found


def _today(path: str, name: str) -> str:
    return next((new for pattern, new in FIELDS.items() if _regex(pattern).fullmatch(path)), name)


def _regex(pattern: str) -> re.Pattern[str]:
    parts = (
        r"(?:[^.]+\.)*" if part == "**" else r"[^.]+\." if part == "*" else re.escape(part) + r"\."
        for part in pattern.split(".")
    )
    return re.compile("".join(parts).removesuffix(r"\."))


def _renamed_keywords(operations: str) -> str:
    """Returns a string of operations with today's keywords; one that cannot be parsed is left as it is."""
    try:
        tree = ast.parse(operations.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return operations
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    found = [
        (keyword.lineno, keyword.col_offset, keyword.arg, ARGUMENTS[call.func.id, keyword.arg])
        for call in calls
        for keyword in call.keywords
        if (call.func.id, keyword.arg) in ARGUMENTS
    ]
    lines = operations.strip().splitlines()
    for number, column, old, new in sorted(found, reverse=True):  # from the end, so that places stay right
        line = lines[number - 1].encode()  # columns count bytes
        lines[number - 1] = (line[:column] + new.encode() + line[column + len(old.encode()) :]).decode()
    return "\n".join(lines) if found else operations
