"""Base of tokenizers: a model that knows the vocabulary, and the rules around it, each of them a field."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers.cleaning import CLEANINGS

TRUNCATIONS = ("right", "left", "error")
PADDINGS = ("right", "left")


class Tokens(NamedTuple):
    """Texts as ids, int32, of one length; `mask`, int32, is 1 at tokens, BOS and EOS included, and 0 at padding
    that is to be masked."""

    ids: Int[np.ndarray, "B L"]
    mask: Int[np.ndarray, "B L"]


class Pairs(NamedTuple):
    """Two texts each in one row: ids and mask as of `Tokens`; `segments`, int32, is 0 at the first, BOS and the EOS
    after it included, and at padding, and 1 at the second."""

    ids: Int[np.ndarray, "B L"]
    mask: Int[np.ndarray, "B L"]
    segments: Int[np.ndarray, "B L"]


class Pieces(NamedTuple):
    """One text as ids, as many as it has; `offsets` are (start, end) of each in the text, in characters.

    Of a character of several tokens, each has all of it.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class Model:
    """Base of vocabularies and how texts are cut into them; they know nothing of BOS, EOS, lengths or padding."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        raise NotImplementedError

    def decode(self, ids: list[list[int]]) -> list[str]:
        raise NotImplementedError

    def locate(self, text: str) -> Pieces:
        """Ids of a text and where they lie in it. Raises ConfigError for a kind that does not say."""
        raise ConfigError('tokenizer: this kind does not say where its tokens lie in a text; "hf" and "gguf" do')

    def id_of(self, token: str) -> int | None:
        """The id of what is written for a token, if there is one."""
        raise NotImplementedError

    def with_tokens(self, tokens: Sequence[str]) -> "Model":
        """The model with these special tokens besides. Raises ConfigError for a kind that takes none."""
        raise ConfigError(f'tokenizer.added: {tokens[0]!r}: this kind takes no more tokens; "hf" and "gguf" do')


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts to ids and back; what `tokenizers.open` returns.

    Attributes:
      vocab_size: one more than the largest id.
      length: L, tokens of each text, BOS, EOS and padding included.
      pad_id: fills what is left of L; may be a token's id (CLIP's is "!"), so go by the mask.
      bos_id, eos_id: None if there is none.
      add_bos, add_eos: whether each text begins with BOS and ends with EOS, one that is cut too.
      truncation: the side on which a longer text is cut ("right", "left"), or "error".
      padding: the side on which a shorter text is padded ("right", "left").
      cleaning: of the text, before all else: "none", "clip", "canonicalize" (see `cleaning`).
      lower_case: whether the cleaned text is lower-cased.
      mask_padding: whether the mask is 0 at padding; if not it is 1 throughout, for a model that looks at padding
        (SigLIP).

    Raises ConfigError for values that cannot be meant.
    """

    model: Model = dataclasses.field(repr=False)
    vocab_size: int
    length: int
    pad_id: int
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    truncation: str = "right"
    padding: str = "right"
    cleaning: str = "none"
    lower_case: bool = False
    mask_padding: bool = True

    def __post_init__(self):
        choices = {"truncation": TRUNCATIONS, "padding": PADDINGS, "cleaning": CLEANINGS}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"tokenizer.{name}={value!r}: no such {name}; {suggest(value, allowed)}")
        for name in ("pad_id", "bos_id", "eos_id"):
            value = getattr(self, name)
            if value is None and name != "pad_id":
                continue
            if not _is_int(value) or not 0 <= value < self.vocab_size:
                raise ConfigError(f"tokenizer.{name}={value!r}: ids are 0 to {self.vocab_size - 1}")
        for name in ("bos", "eos"):
            if getattr(self, f"add_{name}") and getattr(self, f"{name}_id") is None:
                raise ConfigError(f"tokenizer.add_{name}: there is no {name.upper()}; give {name}_id=")
        least = self.add_bos + self.add_eos + 1
        if not _is_int(self.length) or self.length < least:
            raise ConfigError(
                f"tokenizer.length={self.length!r}: must be {least} or more, for one token beside BOS and EOS"
            )

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Ids int32 [B, L] and mask int32 [B, L] of B texts; an empty text is BOS, EOS and padding.

        Raises:
          TypeError: for one string where a sequence of them belongs.
          DataError: for a value that is not text, or a text longer than L if `truncation` is "error".
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"encode takes a sequence of texts: write encode([{texts[:20]!r}])")
        B, L = len(texts), self.length
        ids, mask = np.full((B, L), self.pad_id, np.int32), np.full((B, L), not self.mask_padding, np.int32)
        contents = self.model.encode([self.clean(text, i) for i, text in enumerate(texts)])
        for i, content in enumerate(contents):
            tokens = [self.bos_id] * self.add_bos + self._cut(content, i, texts[i]) + [self.eos_id] * self.add_eos
            filled = slice(0, len(tokens)) if self.padding == "right" else slice(L - len(tokens), L)
            ids[i, filled], mask[i, filled] = tokens, 1
        return Tokens(ids, mask)

    def whole(self, texts: Sequence[str], add_eos: bool | None = None) -> list[list[int]]:
        """Ids of texts in full, each of its own length: with BOS and EOS by the rules, neither cut nor padded.

        Args:
          add_eos: whether a text ends with EOS, for a prompt that is gone on from; by default the tokenizer's rule.

        Raises DataError for a value that is not text.
        """
        before = [self.bos_id] * self.add_bos
        after = [self.eos_id] * (self.add_eos if add_eos is None else add_eos)
        contents = self.model.encode([self.clean(text, i) for i, text in enumerate(texts)])
        return [before + content + after for content in contents]

    def pieces(self, text: str) -> Pieces:
        """A text as ids without BOS, EOS, padding or an end, and where in the text each lies; for chats and prompts.

        A special token that is spelt out in the text is that token, except with SentencePiece.

        Raises ConfigError for a tokenizer that cleans texts, which moves their characters, or of a kind that does not
        say where its tokens lie; DataError for a value that is not text.
        """
        if self.cleaning != "none" or self.lower_case:
            raise ConfigError("tokenizer: where tokens lie in a text is known only without cleaning and lower_case")
        return self.model.locate(self.clean(text))

    def token_id(self, token: str) -> int | None:
        """The id of a token by what is written for it, such as "<|im_end|>"; None if there is no such token."""
        return self.model.id_of(token)

    def encode_pairs(self, firsts: Sequence[str], seconds: Sequence[str]) -> Pairs:
        """BOS, first, EOS, second, EOS, as BERT reads sentence pairs; `segments` is `Bert`'s `segment_ids`.

        Where both are too long together the longer of them is cut, on the side of `truncation`, and then both alike.

        Raises ConfigError for a tokenizer that does not add BOS and EOS, DataError as `encode`, and ValueError for
        lists of different lengths.
        """
        if not (self.add_bos and self.add_eos):
            raise ConfigError("tokenizer: pairs are told apart by BOS and EOS, and this one does not add both")
        if len(firsts) != len(seconds):
            raise ValueError(f"{len(firsts)} first texts and {len(seconds)} second ones")
        B, L = len(firsts), self.length
        ids, segments = np.full((B, L), self.pad_id, np.int32), np.zeros((B, L), np.int32)
        mask = np.full((B, L), not self.mask_padding, np.int32)
        contents = [
            self.model.encode([self.clean(text, i) for i, text in enumerate(texts)]) for texts in (firsts, seconds)
        ]
        for i, (first, second) in enumerate(zip(*contents)):
            first, second = self._cut_pair(first, second, i, firsts[i])
            tokens = [self.bos_id, *first, self.eos_id, *second, self.eos_id]
            start = 0 if self.padding == "right" else L - len(tokens)
            ids[i, start : start + len(tokens)], mask[i, start : start + len(tokens)] = tokens, 1
            segments[i, start + len(first) + 2 : start + len(tokens)] = 1
        return Pairs(ids, mask, segments)

    def decode(
        self, ids: Int[np.ndarray, "B L"] | Iterable[Sequence[int]], mask: Int[np.ndarray, "B L"] | None = None
    ) -> list[str]:
        """Decodes rows of ids to texts, without BOS, EOS, padding, and anything after EOS.

        Args:
          ids: [B, L], or B rows of different lengths.
          mask: mask of `encode`; without it, `pad_id` marks a row's padding, on the side of `padding`.

        Raises ValueError for values that are not rows of ids, and for ids outside the vocabulary.
        """
        rows = [
            self._content(np.asarray(row), None if mask is None else np.asarray(mask[i])) for i, row in enumerate(ids)
        ]
        return self.model.decode(rows)

    def clean(self, text: str, position: int = 0) -> str:
        """Cleans a text for the vocabulary. Raises DataError, which names the position, for anything but text."""
        if not isinstance(text, str):
            raise DataError(f"text {position} is {type(text).__name__}, not a string: {text!r:.60}")
        text = CLEANINGS[self.cleaning](text)
        text = text.lower() if self.lower_case else text
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"text {position} is not Unicode (half a surrogate pair): {text!r:.60}") from error
        return text

    def _cut(self, content: list[int], position: int, text: str) -> list[int]:
        room = self.length - self.add_bos - self.add_eos
        if len(content) <= room:
            return content
        if self.truncation == "error":
            count = len(content) + self.length - room
            raise DataError(
                f"text {position} has {count} tokens, more than length={self.length}: {text!r:.60}; "
                "raise the length, or cut with truncation='right'"
            )
        return content[:room] if self.truncation == "right" else content[-room:]

    def _cut_pair(self, first: list[int], second: list[int], position: int, text: str) -> tuple[list[int], list[int]]:
        room = self.length - 3
        if len(first) + len(second) <= room:
            return first, second
        if self.truncation == "error":
            excess = len(first) + len(second) - room
            raise DataError(f"pair {position} is {excess} tokens longer than length={self.length}: {text!r:.60}")
        # The shorter stays whole if it takes no more than half; of an odd number the longer gets the greater half.
        short = min(len(first), len(second), room // 2)
        sizes = (short, room - short) if len(first) <= len(second) else (room - short, short)
        if self.truncation == "left":
            return first[len(first) - sizes[0] :], second[len(second) - sizes[1] :]
        return first[: sizes[0]], second[: sizes[1]]

    def _content(self, row: np.ndarray, mask: np.ndarray | None) -> list[int]:
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise ValueError(f"decode takes rows of integer ids, [B, L]; a row is {row.dtype}{list(row.shape)}")
        if row.size and not 0 <= row.min() <= row.max() < self.vocab_size:
            raise ValueError(f"ids {row.min()} to {row.max()}: the vocabulary's are 0 to {self.vocab_size - 1}")
        content = (row if mask is None else row[mask.astype(bool)]).tolist()
        if mask is None and self.padding == "left":
            while content and content[0] == self.pad_id:
                content.pop(0)
        if content and content[0] == self.bos_id:
            content.pop(0)
        if self.eos_id in content:
            return content[: content.index(self.eos_id)]
        if mask is None and self.padding == "right":
            while content and content[-1] == self.pad_id:
                content.pop()
        return content


RULES = tuple(f.name for f in dataclasses.fields(Tokenizer) if f.name not in ("model", "vocab_size", "length"))


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
