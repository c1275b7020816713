"""Text out of ids while they come: no half characters, and strings that end a text."""

from collections.abc import Callable, Sequence

from vitvlm.generation.loaded import Tokenizer

BROKEN = "\ufffd"  # stands for bytes that are no character
# Names that byte-level BPE and SentencePiece give a byte that begins a character and ends none.
LONE_BYTES = ("â", "<0xE2>")

Decode = Callable[[Sequence[int]], str]


def decoder(tokenizer: Tokenizer) -> Decode:
    """Returns what makes a text of ids, special tokens left out."""
    return lambda ids: tokenizer.model.decode([list(ids)])[0]


class Stream:
    """The text of ids that come bit by bit: what can no longer change comes out.

    The pieces put together are the text of all ids. What a later token may change is held back: a character some of
    whose bytes are missing, all bytes of a SentencePiece vocabulary up to the next token that is more than a byte (a
    wrong one among them spoils the others), and the beginning of a string that would end the text.

    Args:
      tokenizer: whose vocabulary the ids are of.
      stop: strings that end the text; it is cut before the first.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decode = decoder(tokenizer)
        self._stop = tuple(stop)
        found = (tokenizer.model.id_of(name) for name in LONE_BYTES)
        self._bytes = [token for token in found if token is not None]
        self._ids: list[int] = []
        self._given = 0
        self.stopped = False

    def add(self, ids: Sequence[int]) -> str:
        """The text that is certain with these ids and has not come yet. After a stop string it is empty."""
        self._ids += ids
        text = self._certain()
        cut = cut_at(text, self._stop)
        if cut is not None:
            self.stopped = True
            return self._give(text[:cut])
        return self._give(text[: len(text) - _begun(text, self._stop)])

    def end(self) -> str:
        """The rest of the text."""
        text = self._decode(self._ids)
        cut = cut_at(text, self._stop)
        self.stopped = self.stopped or cut is not None
        return self._give(text[:cut])

    def _certain(self) -> str:
        text = self._decode(self._ids)
        for token in self._bytes:
            text = _common(text, self._decode([*self._ids, token]))
        return text.rstrip(BROKEN)

    def _give(self, text: str) -> str:
        piece, self._given = text[self._given :], max(self._given, len(text))
        return piece


def cut_at(text: str, stop: Sequence[str]) -> int | None:
    """The place of the first stop string in a text; None if there is none."""
    places = [place for each in stop if (place := text.find(each)) >= 0]
    return min(places) if places else None


def needed(ids: Sequence[int], decode: Decode, stop: Sequence[str]) -> int:
    """Counts the ids that it takes for the text to have its stop string: those that follow were written in vain."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if cut_at(decode(ids[:middle]), stop) is None:
            low = middle + 1
        else:
            high = middle
    return low


def _begun(text: str, stop: Sequence[str]) -> int:
    """The length of the longest end of a text that begins a stop string."""
    lengths = (n for each in stop for n in range(min(len(each) - 1, len(text)), 0, -1) if text.endswith(each[:n]))
    return max(lengths, default=0)


def _common(one: str, other: str) -> str:
    """The beginning that two texts share."""
    for i, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return one[:i]
    return one[: len(other)]
