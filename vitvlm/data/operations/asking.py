"""Prompts without an answer, as `supervise` puts them before a model: the same markers, separators and chats."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vitvlm.data.chat import ChatTemplate
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.operations import image_places, language
from vitvlm.data.operations.image_places import ImageRules, Images
from vitvlm.data.operations.language import Learned
from vitvlm.data.tokenizers import Tokenizer

Messages = Sequence[Mapping[str, Any]]
PROBE = "x"  # stands for an answer: a prompt's tokens end where those of its answer begin


@dataclasses.dataclass(frozen=True)
class PromptRules:
    """Rules by which prompts become tokens.

    Fields:
      images: how images are put into texts.
      separator: between a prompt and its answer; None where a prompt is the beginning of the text that is written.
      encoded: an encoder reads the prompt, as a text of its own.
      written: rewrites a prompt with its images' markers as the model's own processor does; None leaves it as it is.
      apart: image tokens come before a text that is tokenized by itself, BOS and all, and has no markers (BLIP-2).
      bos_behind: BOS stands behind the last image, not before all (PaliGemma).
      end: what a prompt ends with (PaliGemma's newline).
    """

    images: ImageRules
    separator: str | None = None
    encoded: bool = False
    written: Callable[[str], str] | None = None
    apart: bool = False
    bos_behind: bool = False
    end: str = ""


class Asked(NamedTuple):
    """Tokens of a prompt.

    Attributes:
      index: its image_index, see `supervise`; None where no image stands in texts.
      each: M of that, the rows of an image or tile.
      places: of each image, how many tokens of the text are its own.
    """

    ids: list[int]
    index: Int[np.ndarray, " L"] | None = None
    each: int = 1
    places: tuple[int, ...] = ()


def asked(
    example: Mapping[str, Any],
    prompt: str | Messages,
    tokenizer: Tokenizer,
    rules: PromptRules,
    template: ChatTemplate | None = None,
) -> Asked:
    """A prompt of an example with its images.

    Args:
      example: "id" and `images` or `image`, with what operations wrote beside them.
      prompt: a text, or messages of a chat, which need a template.

    Raises UnreadableImage for markers that the images do not fit, and what rendering a chat raises.
    """
    record = str(example["id"])
    images = image_places.images_of(example, rules.images, tokenizer)
    if isinstance(prompt, str):
        found = _of_text(prompt, tokenizer, images, rules, record)
    else:
        found = _of_messages(prompt, tokenizer, template, images, record)
    places = language.places(example, found, images, len(found.ids))
    of_each = () if images is None else tuple(_places_of(text, images) for text in images.texts)
    return Asked(found.ids, places.get(language.INDEX), places.get(language.PER_IMAGE, 1), of_each)


def _of_text(prompt: str, tokenizer: Tokenizer, images: Images | None, rules: PromptRules, record: str) -> Learned:
    if tokenizer.eos_id is None:  # which is cut off again
        tokenizer = dataclasses.replace(tokenizer, eos_id=tokenizer.pad_id)
    marker = rules.images.marker
    if images is None and marker in prompt:
        raise UnreadableImage(f"its text has the marker {marker!r}; this model looks at its image without any", record)
    if rules.apart and images is not None and images.texts:
        if marker in prompt:
            raise UnreadableImage(
                f"its text has the marker {marker!r}; images of this model come before all text", record
            )
        found = language.of_texts(tokenizer, None, prompt)
        count = len(images.rows)
        image = [True] * count + [False] * len(found.ids)
        found = found._replace(ids=[images.token_id] * count + found.ids, learned=image, image=image)
        return found if rules.encoded else _cut(found, -1)
    if rules.written is not None and images is not None and images.texts:
        placed = prompt if marker in prompt else marker * len(images.texts) + rules.images.image_separator + prompt
        prompt = rules.written(placed)
    prompt += rules.end
    if rules.encoded:
        return language.of_texts(tokenizer, None, prompt, images=images, record=record)
    if rules.separator is None:
        found = _cut(language.of_texts(tokenizer, None, prompt, images=images, record=record), -1)
        return _bos_behind(found) if rules.bos_behind and tokenizer.add_bos else found
    found = language.of_texts(tokenizer, prompt, PROBE, rules.separator, images, record)
    return _cut(found, found.learned.index(True))


def _of_messages(
    messages: Messages, tokenizer: Tokenizer, template: ChatTemplate, images: Images | None, record: str
) -> Learned:
    if images is not None:
        messages = image_places.in_chat(messages, template, images, record)
    try:
        text = template.render(messages, add_generation_prompt=True, record=record).text
    except DataError as error:
        raise UnreadableImage(str(error).removeprefix(f"{record}: "), record) from error
    stretches: Sequence[image_places.Span] = ()
    if images is not None:
        text, _, stretches = image_places.in_rendered(text, (), template, images, record)
    return language.learned_tokens(tokenizer, text, (), stretches, images)


def _places_of(text: str, images: Images) -> int:
    return text.count(images.token) if images.spelt else images.each


def _cut(found: Learned, end: int) -> Learned:
    return found._replace(ids=found.ids[:end], learned=found.learned[:end], image=found.image[:end])


def _bos_behind(found: Learned) -> Learned:
    """The same with its first token, BOS, behind the last image."""
    last = max((i for i, here in enumerate(found.image) if here), default=0)
    order = [*range(1, last + 1), 0, *range(last + 1, len(found.ids))]
    image = [found.image[i] for i in order] if found.image else ()
    return found._replace(ids=[found.ids[i] for i in order], image=image)
