"""Chats as text, by the template that comes with a tokenizer, and where each message's content lies in that text.

template = chat.ChatTemplate(source, special_tokens={"bos_token": "<s>"})
rendered = template.render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
[rendered.text[span.start : span.end] for span in rendered.spans]  # ["Hi", "Hello!"]

A template is rendered twice: as it is, and with marks around the contents, which say where these lie. Only if both
texts agree, but for the marks, are the places true; contents are never searched for.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.data import chat_jinja
from vitvlm.data.chat_marks import PLACES, TEXTS, Found, Marks, Message, Place, joined, pieces
from vitvlm.data.errors import DataError

# What looks like a token of control in a template's text.
CONTROL_TOKEN = re.compile(r"<\|[^|<>\s{}'\"]+\|>|<(?:start|end)_of_turn>")
# Names of a message's reasoning; templates read the first, gpt-oss's the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of the rendered text, `text[start:end]`, that is content of one message: its index and role."""

    message: int
    role: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A chat as text.

    Fields:
      text: what the tokenizer reads, special tokens spelt out, BOS among them if the template writes one.
      spans: where the messages' contents lie (and their reasoning), in the order of the text. A message that the
        template leaves out has none; one that it writes twice, or of several parts, has several.
      generated: (start, end) of what the template's `{% generation %}` blocks enclose: what an assistant writes.
    """

    text: str
    spans: tuple[Span, ...]
    generated: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template, and the special tokens that it may write.

    Fields:
      source: the template, in Jinja.
      special_tokens: by names such as "bos_token"; a template that writes one that is not here cannot be rendered.
      where: file or name, for messages.

    Raises ConfigError for a template that is no Jinja.
    """

    source: str
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    where: str = "the chat template"

    def __post_init__(self):
        if not isinstance(self.source, str):
            raise ConfigError(f"{self.where}: is {type(self.source).__name__} where a template's text is expected")
        try:
            chat_jinja.program(self.source)
        except chat_jinja.TemplateError as error:
            raise ConfigError(f"{self.where}: no template of Jinja: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        record: str = "the chat",
        **values: Any,
    ) -> Rendered:
        """A chat as text, and where its contents lie.

        Args:
          messages: "role" and "content" each, and what else the template reads. A content is text, or a list of parts
            such as {"type": "text", "text": "Hi"}.
          add_generation_prompt: whether the text ends with the header of an assistant's turn.
          record: name of the chat in errors.
          **values: the template's other variables, such as tools or documents.

        Raises:
          ConfigError: for a generation prompt that the template does not have.
          DataError: for messages that the template refuses, or whose contents it changes so that they have no place in
            the text; the error names the record.
        """
        messages = _checked(messages, record)
        values = {"strftime_now": datetime.now().strftime} | values  # one time, however often it is rendered
        text = self._text(messages, add_generation_prompt, record, values)
        if add_generation_prompt:
            self._check_generation_prompt(messages, text, record, values)
        found = self._located(messages, text, add_generation_prompt, record, values)
        located = (Span(message, messages[message]["role"], start, end) for message, start, end in found.spans)
        return Rendered(text, tuple(located), tuple(found.generated))

    def control_tokens(self) -> tuple[str, ...]:
        """The special tokens that the template spells out, such as "<|im_start|>", in order.

        A tokenizer that lacks one of them would cut it into pieces.
        """
        return tuple(dict.fromkeys(CONTROL_TOKEN.findall(self.source)))

    def _located(
        self, messages: Sequence[Message], text: str, prompt: bool, record: str, values: Mapping[str, Any]
    ) -> Found:
        """The rendered text with marks: around whole contents or, where the template strips or cuts one, within it.

        Raises DataError if there is a content that no marks leave as it is.
        """
        marks = Marks(json.dumps([messages, values], ensure_ascii=False, default=str) + self.source + text, record)

        def tried(places: Sequence[Place | None]) -> Found | None:
            try:
                marked = self._text(marks.around(messages, places), prompt, record, values, marks)
            except DataError:
                return None  # the template looks at the contents
            found = marks.taken_out(marked)
            return found if found is not None and found.text == text else None

        if (found := tried([PLACES[0]] * len(messages))) is not None:
            return found
        places: list[Place | None] = []
        for i in range(len(messages)):
            alone: list[Place | None] = [None] * len(messages)
            for alone[i] in PLACES:
                if tried(alone) is not None:
                    break
            else:
                raise DataError(
                    f"{record}: {self.where} changes the content of message {i}, so where it lies in the text is not "
                    "known"
                )
            places.append(alone[i])
        if (found := tried(places)) is None:
            raise DataError(f"{record}: {self.where} makes one content of another, so where they lie is not known")
        cut = {i for i, place in enumerate(places) if place is pieces}
        return dataclasses.replace(found, spans=list(joined(found.spans, text, messages, cut)))

    def _text(
        self,
        messages: Sequence[Message],
        prompt: bool,
        record: str,
        values: Mapping[str, Any],
        marks: Marks | None = None,
    ) -> str:
        program = chat_jinja.program(self.source, marks.generation if marks else ("", ""))
        known = {"tools": None, "documents": None} | dict(self.special_tokens) | dict(values)
        try:
            return program.render(messages=messages, add_generation_prompt=prompt, **known)
        except chat_jinja.TemplateError as error:
            raise DataError(f"{record}: {self.where} cannot be rendered: {error}") from None
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            raise DataError(f"{record}: {self.where} cannot be rendered: {type(error).__name__}: {error}") from None

    def _check_generation_prompt(
        self, messages: Sequence[Message], text: str, record: str, values: Mapping[str, Any]
    ) -> None:
        """Raises ConfigError for a template that heads an assistant's turn but does not write the header when asked.

        Templates such as LLaMA 2's need none: the assistant's words follow the user's turn at once.
        """
        if self._text(messages, False, record, values) != text:
            return
        missing = f"{record}: {self.where} has no generation prompt: it makes nothing of add_generation_prompt, and"
        free = Marks(self.source + text, record).free
        asked, answer = next(free), next(free)
        parts = not isinstance(messages[-1].get("content", ""), str)
        last = {**messages[-1], "content": [{"type": "text", "text": asked}] if parts else asked}
        try:
            turn = self._text([*messages[:-1], last], False, record, values).rpartition(asked)[2]
            both = [*messages[:-1], last, {"role": "assistant", "content": answer}]
            between = self._text(both, False, record, values).rpartition(answer)[0].rpartition(asked)[2]
        except DataError as error:
            raise ConfigError(f"{missing} no assistant's turn can follow: {error}") from None
        header = between.removeprefix(turn).strip()
        if header or not between.startswith(turn):
            raise ConfigError(
                f"{missing} an assistant's turn begins with {header!r}: add that to the template under "
                "{% if add_generation_prompt %}"
            )


def render(
    template: ChatTemplate | str,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    record: str = "the chat",
    **values: Any,
) -> Rendered:
    """Renders a chat, see `ChatTemplate.render`; a template given as text has no special tokens."""
    template = ChatTemplate(template) if isinstance(template, str) else template
    return template.render(messages, add_generation_prompt, record, **values)


def _checked(messages: Sequence[Message], record: str) -> list[dict[str, Any]]:
    """The messages as templates expect them: without what is None, and reasoning under its usual name.

    Raises DataError.
    """
    if isinstance(messages, str | bytes | Mapping) or not messages:
        raise DataError(f"{record}: a chat is a list of one or more messages, not {messages!r:.60}")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{record}: message {i} has no role: {message!r:.60}")
        message = {name: _plain(value) for name, value in message.items() if value is not None}
        for name in TEXTS:
            if not isinstance(message.get(name, ""), str | list | tuple):
                kind = type(message[name]).__name__
                raise DataError(f"{record}: {name} of message {i} is {kind}, neither text nor a list of parts")
        if (reasoning := next((message[name] for name in REASONING if name in message), None)) is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        checked.append(message)
    return checked


def _plain(value: Any) -> Any:
    """Rebuilds a value of the types of JSON for a template; anything else, such as an image, by its type."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return f"<{type(value).__name__}>"
