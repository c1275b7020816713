"""Options of generation, checked, and named as in `transformers`' generate where that has the same."""

import dataclasses
import math
from collections.abc import Sequence

from vitvlm.core.config import ConfigError

EARLY = (True, False, "never")


@dataclasses.dataclass(frozen=True)
class Options:
    """Wishes of a text after a prompt: how long it is, how its tokens are chosen, and where it stops.

    Attributes:
      max_new_tokens: the most tokens that are written; fewer if the model has no more positions.
      min_new_tokens: before so many are written no stop token is.
      temperature: T, by which logits are divided before a token is drawn; 0 takes the likeliest token (greedy).
      top_k: only the so many likeliest tokens are drawn; 0: all.
      top_p: only the likeliest tokens that together have this probability are drawn (Holtzman et al. 2020).
      min_p: only tokens with this share of the likeliest one's probability are drawn.
      repetition_penalty: of tokens that are in the text already positive logits are divided by it and negative ones
        multiplied (Keskar et al. 2019). The prompt is part of the text, an encoder's text is not.
      samples: texts for each prompt; of a beam search the best ones.
      beams: hypotheses that beam search keeps; 1: no beam search. It takes temperature 0.
      length_penalty: beams are ranked by log-likelihood / tokens^length_penalty.
      early_stopping: when a beam search ends, as `transformers` defines it: True, with `beams` finished texts; False,
        when a running one at its present length cannot surpass them; "never", at any length.
      stop_ids: tokens that end a text; None: those that the model's files say.
      stop: strings that end a text. Neither they nor what follows is part of it.
      seed: of the draws. Those of a prompt depend on it, on the prompt and on the number of the sample alone.
      log_probs: whether each token's log-probability is kept.
      draft: tokens that are copied from the text so far and checked in one pass (prompt-lookup speculation); 0: none.
        The text stays the same; it takes temperature 0 and no beams.
      ngram: the most tokens at the end of the text that are looked up in it for a copy.

    Raises ConfigError, which names the option, for a value that cannot be meant.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    samples: int = 1
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop_ids: Sequence[int] | None = None
    stop: Sequence[str] = ()
    seed: int = 0
    log_probs: bool = False
    draft: int = 0
    ngram: int = 3

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 1, "min_new_tokens": 0, "top_k": 0, "samples": 1, "beams": 1, "draft": 0, "ngram": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise ConfigError(f"{name}: {value!r}; give a whole number from {lowest} on")
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, math.inf),
            ("length_penalty", -math.inf, math.inf),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
                raise ConfigError(f"{name}: {value!r}; give a number from {low:g} to {high:g}")
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name}: 0; give a number above it")
        if self.early_stopping not in EARLY:
            raise ConfigError(f'early_stopping: {self.early_stopping!r}; there is: True, False and "never"')
        if isinstance(self.stop, str) or any(not isinstance(each, str) or not each for each in self.stop):
            raise ConfigError(f"stop: {self.stop!r}; give a list of strings, none of them empty")
        self._check_together()

    def _check_together(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens: {self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}"
            )
        if self.beams > 1 and self.temperature:
            raise ConfigError(f"temperature: {self.temperature} with beams={self.beams}; a beam search draws nothing")
        if self.beams > 1 and self.samples > self.beams:
            raise ConfigError(f"samples: {self.samples} of {self.beams} beams; give as many beams")
        if self.beams > 1 and self.stop:
            raise ConfigError(f"stop: a search of {self.beams} beams ends at stop tokens alone; leave strings out")
        if self.draft and (self.temperature or self.beams > 1):
            raise ConfigError("draft: only greedy text can be copied and checked; set temperature and beams back")
        if self.samples > 1 and self.beams == 1 and not self.temperature:
            raise ConfigError(f"samples: {self.samples} at temperature 0 are all alike; give a temperature, or beams")
        for name, neutral in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
            if getattr(self, name) != neutral and not self.temperature:
                raise ConfigError(f"{name}: at temperature 0 nothing is drawn; give a temperature")
