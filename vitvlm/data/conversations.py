"""Conversations in the forms that data sets have them, as messages with a role and a content each."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitvlm.core import json_texts
from vitvlm.data.errors import UnreadableImage

# LLaVA's and ShareGPT's names of who speaks.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
ASSISTANTS = ("assistant", "model")
# Fields of a record: what is asked, by precedence; what is to be said; and chats.
PROMPTS = ("prompt", "instruction", "question")
ANSWERS = ("output", "answer")
CHATS = ("messages", "conversations")
IMAGE_PARTS = ("image", "image_url", "input_image")  # types of a content's parts that stand for an image


def messages_of(value: Any, record: str, name: str = "messages") -> list[dict[str, Any]]:
    """Messages of a chat: a list or its JSON, with "role" and "content", or LLaVA's "from" and "value".

    A part that stands for an image becomes {"type": "image"}; the images themselves are the record's.

    Raises UnreadableImage for what is no chat, or begins with the assistant: there is nothing that it answers.
    """
    try:
        turns = json_texts.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UnreadableImage(f"its {name!r} are not JSON: {error}", record) from None
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise UnreadableImage(f"its {name!r} are no list of messages: {turns!r:.60}", record)
    messages = [_message(turn, i, record) for i, turn in enumerate(turns)]
    first = next((message for message in messages if message.get("role") not in ("system", "developer")), None)
    if first is not None and first.get("role") in ASSISTANTS:
        raise UnreadableImage("its conversation begins with the assistant: there is no message that it answers", record)
    return messages


def text_of(content: Any) -> str:
    """The text of a message's content, parts of text one after the other, without its images."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    return "".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def is_image(part: Any) -> bool:
    """Tells whether a part of a content stands for an image."""
    return isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS


def _message(turn: Any, place: int, record: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise UnreadableImage(f"message {place} is no object with a role: {turn!r:.60}", record)
    if "from" in turn and "role" not in turn:
        speaker = SPEAKERS.get(str(turn["from"]).lower())
        if speaker is None:
            raise UnreadableImage(f"message {place} is from {turn['from']!r}, none of {', '.join(SPEAKERS)}", record)
        return {"role": speaker, "content": turn.get("value") or ""}
    content = turn.get("content")
    if isinstance(content, list | tuple):
        content = [_part(part, place, record) for part in content]
        return {**turn, "content": content}
    return dict(turn)


def _part(part: Any, place: int, record: str) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if is_image(part):
        return {"type": "image"}
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    told = part.get("type") if isinstance(part, Mapping) else part
    raise UnreadableImage(f"message {place} has a part that is neither text nor an image: {told!r:.60}", record)
