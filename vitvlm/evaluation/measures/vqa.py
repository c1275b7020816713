"""VQA accuracy (Antol et al. 2015; Goyal et al. 2017), by the rules that are published with the data set."""

import re
from collections.abc import Sequence

SIGNS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(["a", "an", "the"])
NUMBERS = {
    name: str(value)
    for value, name in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)


def _repaired() -> dict[str, str]:
    """Contractions by what they are without one of their apostrophes; "somebody'd" is the published list's own slip."""
    found = {"somebody'd": "somebodyd"}
    for whole in _CONTRACTIONS.split():
        found |= {whole[:i] + whole[i + 1 :]: whole for i, character in enumerate(whole) if character == "'"}
    return found


REPAIRED = _repaired()
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def without_signs(text: str) -> str:
    """Leaves out signs that stand beside a space, makes spaces of others, and leaves out full stops but in numbers.

    In a text with a comma between two digits all signs are left out: 1,000 becomes 1000.
    """
    joined = _NUMBER_WITH_COMMA.search(text) is not None
    found = text
    for sign in SIGNS:
        beside = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if joined or beside else " ")
    return _FULL_STOP.sub("", found)


def normalised(answer: str) -> str:
    """The answer in lower case without signs and articles, numbers up to ten as digits, apostrophes put back."""
    words = (NUMBERS.get(word, word) for word in without_signs(stripped(answer)).lower().split())
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def stripped(answer: str) -> str:
    """The answer in one line, without white space around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def accuracy(answer: str, truths: Sequence[str]) -> float:
    """Accuracy of an answer by those of (usually ten) people: 0, 0.3, 0.6, 0.9 and 1 where 0, 1, 2, 3 and 4 are equal.

    It is the mean of min(others that are equal / 3, 1) over all ways to leave one of the people out. Answers are
    normalised unless all people agree, as the published evaluation does it; case never counts.

    Raises ValueError for fewer than two people's answers: with one, nobody would be left.
    """
    if len(truths) < 2:
        raise ValueError(
            f"VQA accuracy compares with the answers of several people, usually ten, and here is {len(truths)}: take "
            "the rule 'exact'"
        )
    truths, answer = [stripped(each) for each in truths], stripped(answer)
    if len(set(truths)) > 1:
        truths, answer = [normalised(each) for each in truths], normalised(answer)
    equal = [each.lower() == answer.lower() for each in truths]
    return sum(min((sum(equal) - own) / 3, 1) for own in equal) / len(equal)
