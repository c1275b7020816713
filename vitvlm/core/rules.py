"""Regex rules over parameter paths: one syntax for freezing, learning rates, weight decay, sharding and loading.

A rule is a pair `(pattern, value)`. A pattern must match the WHOLE path (`re.fullmatch`); the first rule that
matches wins; every path must be matched by some rule; and a rule that is never the first to match is an error,
because it is a rule its author believes to be in force.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.core.patterns import Pattern, PatternError

Rules = Sequence[tuple[str, Any]]


class RuleError(ConfigError):
    """A rule list that leaves a path uncovered, holds an unused rule, or holds an invalid regex."""


def match(rules: Rules, paths: Iterable[str], where: str) -> dict[str, Any]:
    """The value of the first rule that matches each path.

    Args:
      rules: `(pattern, value)` pairs.
      paths: parameter paths such as "blocks/mlp/up/kernel".
      where: the config field that the rules come from, for error messages ("optimizer.freeze").

    Raises RuleError for what is no pair, a bad pattern, an uncovered path or an unused rule (all of which are listed).
    """
    return {path: rules[index][1] for path, index in match_indices(rules, paths, where).items()}


def match_indices(rules: Rules, paths: Iterable[str], where: str) -> dict[str, int]:
    """Returns the index of the first rule that matches each path; arguments and errors are those of `match`."""
    patterns = compiled(rules, where)
    winners: dict[str, int] = {}
    uncovered = []
    for path in paths:
        try:
            index = next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(path)), None)
        except PatternError as error:
            raise RuleError(f"{where}: {error}") from None
        if index is None:
            uncovered.append(path)
        else:
            winners[path] = index
    unused = sorted(set(range(len(patterns))) - set(winners.values()))
    if uncovered:
        raise RuleError(
            f"{where}: no rule covers {_some(uncovered)}; add a last rule such as ('.*', value) for all the others"
        )
    if unused:
        names = _some([patterns[i].pattern for i in unused])
        raise RuleError(f"{where}: never used: {names}; a rule must be the first to match (fullmatch) some parameter")
    return winners


def compiled(rules: Rules, where: str) -> list[Pattern]:
    """Returns the patterns of rules. Raises RuleError for what is no pair, or no regular expression."""
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise RuleError(f"{where}: {rules!r:.60} is no list of rules; write pairs such as (('.*', value),)")
    for rule in rules:
        if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
            raise RuleError(f"{where}: {rule!r:.60} is no pair (pattern, value); one pair alone is written ((…, …),)")
    return [_compile(pattern, where) for pattern, _ in rules]


def _compile(text: str, where: str) -> Pattern:
    try:
        return Pattern(text)
    except PatternError as error:
        raise RuleError(f"{where}: {error}") from None


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
