"""Texts after prompts: `Writer(loaded).write(["Once upon a time"])`."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitvlm.core.config import ConfigError
from vitvlm.generation import beams, loop, sizes
from vitvlm.generation.choosing import Choosing, keys_of
from vitvlm.generation.loaded import Loaded, Picture, Tokenizer
from vitvlm.generation.models import Answer, Prompts, language_model
from vitvlm.generation.options import Options
from vitvlm.generation.prompts import (
    NOTHING,
    Inputs,
    answers_of,
    behind,
    check_ids,
    check_inputs,
    ids_of,
    in_one,
    padded,
    stop_ids_of,
    tokenizer_of,
)
from vitvlm.generation.sizes import Size
from vitvlm.generation.text import Stream, cut_at, decoder, needed

STEPS = 64  # between two looks of the host; while it streams or looks for strings:
STREAMED_STEPS = 8

DEFAULTS = Options()
OnText = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Written:
    """A text that was written after a prompt.

    Attributes:
      text: without the prompt, special tokens and stop string.
      ids: its tokens, a stop token left out.
      finish: why it ends: "stop", a stop token; "string", a stop string; "length", max_new_tokens; "positions", the
        model has no more.
      log_probs: of the ids, and of the stop token if there is one, by the model before temperature, penalties and
        whatever else; None unless asked for.
      score: of a beam: log-likelihood / tokens^length_penalty; None without beams.
      answer: which of the answers it is, of `Writer.answer`.
      passes: through the model, for all texts of the batch together, the reading of the prompts included.
    """

    text: str
    ids: tuple[int, ...]
    finish: str
    log_probs: tuple[float, ...] | None = None
    score: float | None = None
    passes: int = 0
    answer: int | None = None


class Writer:
    """A language model that writes.

    Args:
      loaded: a model with its weights and tokenizer, as `pretrained.load` returns it.
      cache: dtype of the cached keys and values, by default that of the computation; "int8" rounds them.

    Raises ConfigError for a model that writes no text.
    """

    def __init__(self, loaded: Loaded, cache: DTypeLike | None = None) -> None:
        self.loaded = loaded
        self.model = language_model(loaded.model)
        self.variables = loaded.variables
        self.cache = cache

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's. Raises ConfigError if it has none."""
        return tokenizer_of(self.loaded)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a text by the model's own files."""
        return stop_ids_of(self.loaded)

    def write(
        self,
        prompts: Sequence[str],
        options: Options = DEFAULTS,
        on_text: OnText | None = None,
        inputs: Inputs = NOTHING,
        images: Sequence[Sequence[Picture]] | None = None,
    ) -> list[list[Written]]:
        """Writes texts after prompts, all in one batch: for each prompt `options.samples` of them.

        Args:
          on_text: called with the number of a text, prompt * samples + sample, and the next piece of it, as soon as
            that can no longer change; not for beams.
          inputs: what else the model reads with the prompts, such as images [B, I, H, W, C]; see `models.Prompts`.
          images: those of each prompt, as paths, PIL images or pixels uint8 [H, W, C], which take the places of its
            markers, "<image>", or come before it; see `pretrained.Pretrained.with_images`. In place of `inputs`.

        Raises ConfigError for a prompt that is empty or has more tokens than the model positions, and for images that
        the model cannot be shown.
        """
        if images is not None:
            if inputs:
                raise ConfigError("images or inputs, one of them: images are made inputs")
            shown = self.loaded.with_images(prompts, images)
            return self.write_ids(shown.ids, options, on_text, inputs=shown.inputs)
        return self.write_ids(self.ids(prompts), options, on_text, inputs=inputs)

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Prompts as the model goes on from them. Raises ConfigError for an empty one."""
        return ids_of(self.loaded, prompts, add_eos=None if isinstance(self.model, Answer) else False)

    def answer(
        self,
        prompts: Sequence[str],
        answers: Sequence[str] | Sequence[Sequence[str]],
        options: Options = DEFAULTS,
        inputs: Inputs = NOTHING,
    ) -> list[list[Written]]:
        """Writes one of several answers after each prompt, token by token; `Written.answer` tells which.

        At each token only those are allowed that go on an answer, or end one. Unlike `choose`, which compares whole
        answers, greedy choice takes the one that begins best.

        Args:
          answers: for all prompts, or a list for each; each stands behind the prompt as it is.
          options: without `max_new_tokens` and `stop`, which the answers are in place of.
          inputs: see `write`.

        Raises ConfigError as `write`, and for a model whose files name no token that ends a text.
        """
        ids, of_prompts = self.ids(prompts), answers_of(prompts, answers)
        if not (stop := self._stops(options)[:1]):
            raise ConfigError("answers: the model's files name no token that ends a text; give stop_ids")
        choices = [
            [(*behind(self.loaded, prompt, own, answer, self.model), *stop) for answer in each]
            for prompt, own, each in zip(prompts, ids, of_prompts)
        ]
        longest = max(len(one) for each in choices for one in each)
        options = dataclasses.replace(options, max_new_tokens=longest, stop_ids=stop, stop=())
        texts = self.write_ids(ids, options, answers=choices, inputs=inputs)
        return [
            [dataclasses.replace(text, answer=each.index((*text.ids, *stop))) for text in of_prompt]
            for of_prompt, each in zip(texts, choices)
        ]

    def write_ids(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options = DEFAULTS,
        on_text: OnText | None = None,
        answers: Sequence[Sequence[Sequence[int]]] | None = None,
        inputs: Inputs = NOTHING,
    ) -> list[list[Written]]:
        """The same as `write` for prompts as ids. Without a tokenizer the texts are empty.

        Args:
          answers: of each prompt, the only ids that may be written, their stop tokens included.
        """
        if not len(prompts):
            raise ConfigError("no prompts: give one at least")
        for i, ids in enumerate(prompts):
            check_ids(self.loaded, ids, f"prompt {i}")
        if options.beams > 1:
            return self._search(prompts, options, answers, inputs)
        batch, size = self._batch(prompts, options, inputs)
        stop_ids = self._stops(options)
        rows = np.repeat(np.arange(len(prompts)), options.samples)
        numbers = [zlib.crc32(np.asarray(ids, np.int32).tobytes()) for ids in prompts]
        keys = keys_of(options.seed, numbers, options.samples)
        choosing = Choosing.of(options, stop_ids, None if answers is None else in_one(answers)[rows])
        draft = loop.begin(
            self.model,
            self.variables,
            batch,
            jnp.asarray(rows),
            choosing,
            keys,
            room=size.room,
            taken_back=options.draft,
            cache=self.cache,
            log_probs=options.log_probs,
        )
        watched = [Stream(self.tokenizer, options.stop) for _ in rows] if on_text or options.stop else []
        place, written = size.begun, size.begun + 1
        while True:
            if watched:
                draft = self._look(draft, watched, place, written, stop_ids, on_text)
            if written >= size.end or bool(draft.done.all()):
                break
            place, steps = written, STREAMED_STEPS if watched else STEPS
            given = (self.model, self.variables, draft, choosing, keys)
            if options.draft and written + options.draft < size.end:
                end = jnp.int32(min(written + steps + options.draft, size.end))
                draft = loop.speculate(*given, end, count=options.draft, ngram=options.ngram)
            else:
                draft = loop.go_on(*given, jnp.int32(min(written + steps, size.end)))
            written = int(draft.place)
        for row, stream in enumerate(watched):
            if on_text and (piece := stream.end()):
                on_text(row, piece)
        texts = self._texts(draft, size, options, stop_ids)
        return [texts[i : i + options.samples] for i in range(0, len(texts), options.samples)]

    def _look(
        self,
        draft: loop.Draft,
        watched: Sequence[Stream],
        place: int,
        written: int,
        stop_ids: Sequence[int],
        on_text: OnText | None,
    ) -> loop.Draft:
        """Streams what was written from `place` on, and ends the texts that have a stop string."""
        done = np.array(draft.done)
        for row, new in enumerate(np.asarray(draft.ids[:, place:written])):
            if watched[row].stopped:
                continue
            piece = watched[row].add([i for i in new.tolist() if i >= 0 and i not in stop_ids])
            if on_text and piece:
                on_text(row, piece)
            done[row] |= watched[row].stopped
        return draft.replace(done=jnp.asarray(done))

    def _texts(self, draft: loop.Draft, size: Size, options: Options, stop_ids: Sequence[int]) -> list[Written]:
        ids = np.asarray(draft.ids)[:, size.begun : size.end]
        log_probs = None if draft.log_probs is None else np.asarray(draft.log_probs)[:, size.begun : size.end]
        passes = int(draft.passes)
        texts = []
        for row, written in enumerate(ids):
            written = written[written >= 0].tolist()
            text = self._written(written, size, options, stop_ids)
            known = None
            if log_probs is not None:
                count = len(text.ids) + (text.finish == "stop")
                known = tuple(log_probs[row, :count].tolist())
            texts.append(dataclasses.replace(text, log_probs=known, passes=passes))
        return texts

    def _written(self, ids: Sequence[int], size: Size, options: Options, stop_ids: Sequence[int]) -> Written:
        """The text of ids, up to a stop token or string."""
        finish = "positions" if size.cut else "length"
        stops = [i for i, token in enumerate(ids) if token in stop_ids]
        if stops:
            ids, finish = ids[: stops[0]], "stop"
        text = ""
        if self.loaded.tokenizer is not None:
            decode = decoder(self.loaded.tokenizer)
            text = decode(ids)
            if (cut := cut_at(text, options.stop)) is not None:
                ids, text, finish = ids[: needed(ids, decode, options.stop)], text[:cut], "string"
        return Written(text, tuple(ids), finish)

    def _search(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        answers: Sequence[Sequence[Sequence[int]]] | None,
        inputs: Inputs,
    ) -> list[list[Written]]:
        batch, size = self._batch(prompts, options, inputs)
        stop_ids = self._stops(options)
        found = beams.search(
            self.model,
            self.variables,
            batch,
            Choosing.of(options, stop_ids, None if answers is None else in_one(answers)),
            jnp.int32(size.end),
            jnp.float32(options.length_penalty),
            room=size.room,
            beams=options.beams,
            early_stopping=options.early_stopping,
            cache=self.cache,
        )
        ids, scores, passes = np.asarray(found.finished), np.asarray(found.finished_scores), int(found.passes)
        texts = []
        for of_prompt, of_prompt_scores in zip(ids, scores):
            kept = []
            for row, score in list(zip(of_prompt, of_prompt_scores))[: options.samples]:
                row = row[size.begun :]
                text = self._written(row[row >= 0].tolist(), size, options, stop_ids)
                kept.append(dataclasses.replace(text, score=float(score), passes=passes))
            texts.append(kept)
        return texts

    def _stops(self, options: Options) -> tuple[int, ...]:
        return self.stop_ids if options.stop_ids is None else tuple(options.stop_ids)

    def _batch(self, prompts: Sequence[Sequence[int]], options: Options, inputs: Inputs) -> tuple[Prompts, Size]:
        """Prompts in one array, and the sizes of the programs that read them and go on."""
        check_inputs(self.loaded, inputs, len(prompts))
        longest = max(map(len, prompts))
        if isinstance(self.model, Answer):
            size = sizes.of_answer(longest, options.max_new_tokens, self.loaded.model.max_positions)
        else:
            size = sizes.of_continuation(longest, options.max_new_tokens, self.loaded.model.length)
        return padded(prompts, size.prompt, inputs), size
