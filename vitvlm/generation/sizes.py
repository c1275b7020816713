"""Sizes that programs are compiled for: few, so that another prompt rarely needs another compilation."""

import dataclasses
import math

from vitvlm.core.config import ConfigError

SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Size:
    """Places of a batch's texts.

    Attributes:
      prompt: L, tokens of a prompt with its padding.
      begun: the first place after it; of an answer, after the start token.
      end: the place behind the last that may be written; room: places of the cache.
      cut: whether the model's positions end the texts, not the number of new tokens.
    """

    prompt: int
    begun: int
    end: int
    room: int
    cut: bool = False


def fitting(count: int) -> int:
    """The smallest size for so many tokens: 16, 24, 32, 48, 64, 96, …"""
    power = 2 ** max(0, math.ceil(math.log2(max(count, SMALLEST) / SMALLEST))) * SMALLEST
    return power * 3 // 4 if count <= power * 3 // 4 and power > SMALLEST else power


def of_continuation(longest: int, new: int, positions: int, spare: int = 0) -> Size:
    """Places for prompts of up to `longest` tokens and `new` more, of a model with so many positions.

    Padding takes none of the positions that the texts need. `spare` places more may be written and taken back.

    Raises ConfigError for a prompt that leaves no position to write to.
    """
    if longest >= positions:
        raise ConfigError(f"a prompt of {longest} tokens; the model has {positions} positions, one of them to write to")
    end = min(longest + new, positions)
    prompt = min(fitting(longest), positions - (end - longest))
    last = prompt + end - longest
    return Size(prompt, prompt, last, max(last, min(fitting(last + spare), positions)), end < longest + new)


def of_answer(longest: int, new: int, positions: int | None = None, spare: int = 0) -> Size:
    """The same for an encoder-decoder: its text begins with one start token, and the prompt is another text.

    Args:
      positions: of either text; None where they are relative.

    Raises ConfigError for a prompt with more tokens.
    """
    if positions is None:
        return Size(fitting(longest), 1, 1 + new, fitting(1 + new + spare))
    if longest > positions:
        raise ConfigError(f"a prompt of {longest} tokens; the model has {positions} positions")
    end = min(1 + new, positions)
    return Size(min(fitting(longest), positions), 1, end, min(fitting(end + spare), positions), end < 1 + new)
