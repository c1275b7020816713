"""The texts of a record of language: a chat, a prompt and its answer, or a text alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.conversations import ANSWERS, CHATS, PROMPTS, messages_of
from vitvlm.data.errors import UnreadableImage

_FIELD = re.compile(r"\{(\w+)\}")


class Texts(NamedTuple):
    """Texts of a record: `messages` of a chat, or an `answer` and, unless it stands alone, its `prompt`."""

    prompt: str | None
    answer: str | None
    messages: list[dict[str, Any]] | None = None

    @property
    def chat(self) -> list[dict[str, Any]] | None:
        """The messages, or a prompt and its answer as two of them; None of a text alone."""
        if self.messages is not None or self.prompt is None:
            return self.messages
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


def read(example: Mapping[str, Any], prompt: str | None, answer: str | None) -> Texts:
    """Finds the texts of a record; `prompt` and `answer` are fields, or texts with fields in braces, as of `supervise`.

    Raises UnreadableImage for a record without these, or with an empty text where one is to be learned.
    """
    record = str(example["id"])
    if prompt is None and answer is None:
        if (chat := _first(example, CHATS)) is not None and example[chat] not in (None, ""):
            return Texts(None, None, messages_of(example[chat], record, chat))
        asked = _first(example, PROMPTS)
        if asked is None or (example.get("text") and not example[asked]):
            return Texts(None, filled(example, "text", record))
        question = filled(example, asked, record)
        if asked == "instruction" and example.get("input"):
            question = f"{question}\n{filled(example, 'input', record)}"
        said = _first(example, ANSWERS) or next((name for name in ANSWERS if name in example), ANSWERS[0])
        return Texts(question, filled(example, said, record))
    if answer is None:
        raise ConfigError("supervise: prompt= without answer=: nothing would be learned")
    return Texts(None if prompt is None else filled(example, prompt, record), filled(example, answer, record))


def _first(example: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the fields that has a value; of a mixture, examples have the fields of others too, without any."""
    there = [name for name in names if example.get(name) is not None]
    return next((name for name in there if example[name]), there[0] if there else None)


def filled(example: Mapping[str, Any], wanted: str, record: str) -> str:
    """A field's text, or a text with fields in braces; several texts in a field are joined by commas."""
    names = _FIELD.findall(wanted) or [wanted]
    values = {}
    for name in names:
        if name not in example:
            known = {field for field, value in example.items() if isinstance(value, str | tuple) and field != "id"}
            raise UnreadableImage(f"has no {name!r}; {suggest(name, known)}", record)
        value = example[name]
        values[name] = ", ".join(value) if isinstance(value, tuple) else value or ""
        if not values[name].strip():
            raise UnreadableImage(f"its {name!r} is empty", record)
    return _FIELD.sub(lambda found: values[found[1]], wanted) if _FIELD.search(wanted) else values[names[0]]
