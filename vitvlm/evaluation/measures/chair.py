"""CHAIR (Rohrbach et al. 2018): the objects that a caption mentions and its image does not have."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vitvlm.evaluation.measures import ptb
from vitvlm.evaluation.measures.coco_objects import COCO, TOGETHER

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "child": "children",
    "policeman": "policemen",
    "serviceman": "servicemen",
    "gentleman": "gentlemen",
    "mouse": "mice",
    "goose": "geese",
    "knife": "knives",
    "thief": "thieves",
    "calf": "calves",
    "ox": "oxen",
}


class Mention(NamedTuple):
    """A word of a caption, and the object that it stands for."""

    word: str
    object: str


class Vocabulary:
    """Names of objects with their synonyms and plurals, and how they are found in texts.

    Args:
      synonyms: the other names of each object.
      together: two words that are taken together, and what they are taken for: a "hot dog" is no dog.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]], together: Mapping[str, str]):
        self._objects: dict[str, str] = {}
        self._together: dict[str, str] = {}
        for name, others in synonyms.items():
            for word in (name, *others):
                for form in forms(word.lower()):
                    self._objects.setdefault(form, name)
                    if " " in form:
                        self._together.setdefault(form, form)
        for pair, meant in together.items():
            self._together |= dict.fromkeys(forms(pair), meant)

    def object(self, name: str) -> str | None:
        """The object of a name, a synonym or a plural; None if there is none."""
        return self._objects.get(name.lower())

    def objects(self, name: str) -> list[str]:
        """The object of a name, or those that a phrase such as "a small red square" mentions.

        Raises ValueError if there is none.
        """
        whole = self.object(name)
        found = [mention.object for mention in self.mentions(name)] if whole is None else [whole]
        if not found:
            raise ValueError(f"the object {name!r} is none of the vocabulary's")
        return found

    def mentions(self, text: str) -> list[Mention]:
        """The objects that a text mentions, as often as it does."""
        words = self._joined(ptb.tokens(text))
        if "toilet" in words:  # whose seat is no chair
            words = [word for word in words if word != "seat"]
        return [Mention(word, self._objects[word]) for word in words if word in self._objects]

    def _joined(self, words: Sequence[str]) -> list[str]:
        """The words, those that belong together as one."""
        found, place = [], 0
        while place < len(words):
            meant = self._together.get(" ".join(words[place : place + 2]))
            found.append(words[place] if meant is None else meant)
            place += 1 if meant is None else 2
        return found


def forms(name: str) -> tuple[str, ...]:
    """A noun in singular and plural."""
    before, space, last = name.rpartition(" ")
    start = before + space
    if last in _IRREGULAR:
        return name, start + _IRREGULAR[last]
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return name, f"{name}es"
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return name, f"{name[:-1]}ies"
    return name, f"{name}s"


class Hallucinated(NamedTuple):
    """Mentions of a caption: all, and those of objects that are not in the image; and what there is."""

    mentions: tuple[Mention, ...]
    wrong: tuple[Mention, ...]
    there: frozenset[str]


def hallucinated(vocabulary: Vocabulary, caption: str, objects: Iterable[str], captions: Iterable[str]) -> Hallucinated:
    """The objects that a caption mentions and its image does not have.

    Args:
      objects: what is in the image, by names or phrases, such as those of COCO's annotations.
      captions: true ones, whose objects are in the image too.

    Raises ValueError for an object that the vocabulary does not have.
    """
    there = {mention.object for each in captions for mention in vocabulary.mentions(each)}
    for name in objects:
        there |= set(vocabulary.objects(name))
    mentions = tuple(vocabulary.mentions(caption))
    return Hallucinated(mentions, tuple(each for each in mentions if each.object not in there), frozenset(there))


def coco() -> Vocabulary:
    """The 80 objects of COCO with the synonyms and pairs of words that CHAIR was published with."""
    return Vocabulary(COCO, TOGETHER)
