"""Records of instruction data as a scan sees them: what is asked and said, and what is wrong with that."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitvlm.data.conversations import ANSWERS, ASSISTANTS, CHATS, PROMPTS, is_image, messages_of, text_of
from vitvlm.data.errors import UnreadableImage

MARKER = "<image>"
NUMBER_WORDS = frozenset(
    re.findall(
        r"\w+", "none zero one two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty"
    )
)
COLOURS = frozenset(
    re.findall(
        r"\w+",
        """red orange yellow green blue purple violet pink brown black white gray grey teal cyan magenta beige gold
        silver""",
    )
)
TYPES = ("yes or no", "number", "colour", "a word", "a phrase", "a sentence", "several sentences")
LONGEST_PHRASE = 5  # words
LONGEST_CHOICE = 3  # words of an answer that a majority can guess
_EDGES = re.compile(r"^\W+|\W+$")
_SENTENCE_ENDS = re.compile(r"[.!?]+(?=\s|$)")


@dataclasses.dataclass(frozen=True)
class Told:
    """Texts of a record.

    Attributes:
      question, answer: what is asked and what is to be said; of a chat, all turns of either side.
      kind: of question, where the source says it.
      markers: how many images the text has places for.
      fault: the kind of `problems.KINDS` that is wrong with the texts themselves; "" for nothing.
      note: more about the fault.
    """

    question: str
    answer: str
    kind: str = ""
    markers: int = 0
    fault: str = ""
    note: str = ""


def is_record(example: Mapping[str, Any]) -> bool:
    """Tells whether an example asks and answers something: a chat, or a prompt with an answer beside it."""
    if any(example.get(name) for name in CHATS):
        return True
    return any(example.get(name) for name in PROMPTS) and any(name in example for name in ANSWERS)


def told(example: Mapping[str, Any]) -> Told:
    """The texts of a record, markers left out, and its fault: "no_answer" or "assistant_first"."""
    kind = str(example.get("question_type") or "")
    chat = next((name for name in CHATS if example.get(name)), None)
    if chat is None:
        parts = [next((example[name] for name in PROMPTS if example.get(name)), None), example.get("input")]
        asked = "\n".join(str(part) for part in parts if part)
        said = next((str(example[name]) for name in ANSWERS if example.get(name)), "")
        markers = (asked + said).count(MARKER)
    else:
        try:
            messages = messages_of(example[chat], str(example["id"]), chat)
        except UnreadableImage as error:
            return Told("", "", kind, 0, "unusable_chats", error.reason)
        sides: dict[bool, list[str]] = {True: [], False: []}
        markers = 0
        for message in messages:
            text, content = text_of(message.get("content")), message.get("content")
            markers += text.count(MARKER) + sum(map(is_image, content if isinstance(content, list) else ()))
            if message.get("role") != "system":
                sides[message.get("role") in ASSISTANTS].append(text.strip())
        asked, said = "\n".join(sides[False]), "\n".join(sides[True])
        if not all(sides[True]):
            said = ""  # a turn without words
    question, answer = (text.replace(MARKER, " ").strip() for text in (asked, said))
    return Told(question, answer, kind, markers, "" if answer else "no_answer", question[:200])


def key(text: str) -> str:
    """Equal for questions, or answers, that differ only in case, spaces and punctuation at their ends."""
    return _EDGES.sub("", " ".join(text.casefold().split()))


def answer_type(answer: str) -> str:
    """The type of an answer, one of TYPES."""
    words = key(answer).split()
    if len(words) == 1:
        word = words[0]
        if word in ("yes", "no"):
            return TYPES[0]
        if word in NUMBER_WORDS or word.replace(",", "").replace(".", "").isdecimal():
            return TYPES[1]
        return TYPES[2] if word in COLOURS else TYPES[3]
    sentences = len(_SENTENCE_ENDS.findall(answer.strip()))
    if len(words) <= LONGEST_PHRASE and sentences <= 1:
        return TYPES[4]
    return TYPES[5] if sentences <= 1 else TYPES[6]


@dataclasses.dataclass(frozen=True)
class Blind:
    """Share of records whose answer is right without their image, by one way of guessing.

    Attributes:
      way: how it was guessed; n: records; share: of them, 0 to 1; by_type: (n, share) by kind of question.
    """

    way: str
    n: int
    share: float
    by_type: Mapping[str, tuple[int, float]]

    @classmethod
    def of(cls, way: str, right: Sequence[tuple[str, bool]]) -> "Blind":
        """Counts pairs (kind of question, whether the guess is right)."""
        kinds: dict[str, list[bool]] = collections.defaultdict(list)
        for kind, is_right in right:
            kinds[kind or "all"].append(is_right)
        by_type = {kind: (len(each), sum(each) / len(each)) for kind, each in sorted(kinds.items())}
        return cls(way, len(right), sum(is_right for _, is_right in right) / max(len(right), 1), by_type)


def majority(records: Mapping[str, Sequence[Told]]) -> dict[str, Blind]:
    """Share of each split's records with answers of up to LONGEST_CHOICE words that the majority per question guesses.

    For a question the answer that it has most often in "train" is guessed (in the split itself, the record left out, if
    that is "train" or there is none), and for one that is not there the most frequent answer of all.
    """
    found = {}
    short = {split: [one for one in each if one.answer and _is_short(one.answer)] for split, each in records.items()}
    for split, each in short.items():
        if not each:
            continue
        own = split == "train" or not short.get("train")
        counts, overall = _counts(each if own else short["train"])
        right = []
        for one in each:
            asked, said = key(one.question), key(one.answer)
            guess = _most(counts.get(asked, collections.Counter()), said if own else None)
            guess = _most(overall, said if own else None) if guess is None else guess
            right.append((one.kind, guess == said))
        where = f"of {split} itself, each record left out" if own else "of train"
        found[split] = Blind.of(f"the majority per question {where}", right)
    return found


def _is_short(answer: str) -> bool:
    return len(key(answer).split()) <= LONGEST_CHOICE


def _counts(records: Sequence[Told]) -> tuple[dict[str, collections.Counter[str]], collections.Counter[str]]:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    overall: collections.Counter[str] = collections.Counter()
    for one in records:
        counts[key(one.question)][key(one.answer)] += 1
        overall[key(one.answer)] += 1
    return counts, overall


def _most(counts: collections.Counter[str], left_out: str | None) -> str | None:
    """The most frequent answer, of equal ones the first that was met, `left_out` counted once less; None for none."""
    left = {answer: count - (answer == left_out) for answer, count in counts.items()}
    best = max(left, key=left.get, default=None)
    return best if best is not None and left[best] > 0 else None


def candidates(records: Sequence[Told], most: int = 8) -> dict[str, list[str]]:
    """Answers to choose from, by question: the most frequent ones of the same kind of question, as they are written."""
    by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    written: dict[str, str] = {}
    for one in records:
        if one.answer and _is_short(one.answer):
            by_kind[_kind(one)][key(one.answer)] += 1
            written.setdefault(key(one.answer), one.answer)
    return {kind: [written[answer] for answer, _ in each.most_common(most)] for kind, each in by_kind.items()}


def choices(one: Told, known: Mapping[str, Sequence[str]]) -> list[str]:
    """The record's own answer first, and those that it competes with."""
    others = [answer for answer in known.get(_kind(one), ()) if key(answer) != key(one.answer)]
    return [one.answer, *others]


def _kind(one: Told) -> str:
    """The kind of a question: the source's, or its first two words."""
    return one.kind or " ".join(key(one.question).split()[:2])
