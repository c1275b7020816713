"""Texts from a language model: prompts from the command line or a file, to the terminal or to a file."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import cells
from rich.console import Console
from rich.progress import track

from vitvlm import generation, pretrained
from vitvlm.core.config import ConfigError, suggest
from vitvlm.generation import Options, Writer, Written, looking
from vitvlm.generation.loaded import Shown
from vitvlm.pretrained import Pretrained

WORD = 24  # columns of the longest word that makes room in a table


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as the user gave it.

    Attributes:
      index: its number among all; where: what errors call it.
      text: of it; messages: of a chat, each with "role" and "content", where it is one; the text is "" then.
      id: the record's own name, if it has one.
      images: files of its images, in the order of their markers.
    """

    index: int
    where: str
    text: str
    messages: tuple[dict[str, Any], ...] = ()
    id: Any = None
    images: tuple[str, ...] = ()


def load(weights: str, kind: str | None = None, cache: str | None = None, **fields: Any) -> Writer:
    """A language model that writes: weights as `pretrained.load` reads them, stored as `kind` for generation.

    Args:
      kind: see `generation.stored`; None leaves the weights as they are. cache: see `generation.Writer`.

    Raises ConfigError for weights that cannot be read, or are not a language model's.
    """
    try:
        opened = pretrained.open(weights, **fields)
        if opened.model.writes is None:
            raise ConfigError(
                f"{weights}: {type(opened.model).__name__} writes no text: give a language model's weights"
            )
        loaded = opened.placed()
        return Writer(loaded if kind is None else generation.stored(loaded, kind), cache=cache)
    except pretrained.WeightsError as error:
        raise ConfigError(str(error)) from error


def read_prompts(lines: TextIO, where: str, folder: str | Path = "") -> Iterator[Prompt]:
    """Prompts of a file: JSON objects with "prompt" or "messages" and perhaps "id", or a prompt a line as it is.

    An object may have "image", a path, or "images", several, from `folder` on.

    Raises ConfigError, with the line's number, for an object without either, or a text that is empty.
    """
    for number, line in enumerate(lines):
        line, here = line.rstrip("\n"), f"{where}, line {number + 1}"
        if not line.startswith("{"):
            if not line:
                raise ConfigError(f"{here}: is empty: give a prompt, or an object of JSON with one")
            yield Prompt(number, here, line)
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{here}: begins with {{ but is no JSON: {error}") from None
        if ("prompt" in record) == ("messages" in record):
            near = suggest(next(iter(record), ""), ("prompt", "messages"))
            raise ConfigError(f'{here}: needs "prompt" or "messages", one of them; {near}')
        if not isinstance(text := record.get("prompt", ""), str):
            raise ConfigError(f'{here}: "prompt" is {type(text).__name__}, not a string')
        images = _images(record, here, Path(folder))
        if "prompt" in record and not text and not images:
            raise ConfigError(f'{here}: "prompt" is empty: give it a text to go on from')
        yield Prompt(number, here, text, tuple(record.get("messages", ())), record.get("id"), images)


def shown(writer: Writer, prompts: Sequence[Prompt], chat: bool = False, system: str = "") -> Shown:
    """Ids that the model goes on from, and what it reads with them.

    Args:
      chat: whether a plain text is a user's message, which the tokenizer's chat template makes a chat of; one of
        messages is so in any case.
      system: a message that stands before such a text.

    Raises ConfigError for an empty text and for a model without tokenizer, or chat template where one is needed, or
    whose tokenizer does not know the template's tokens, and for images as `Pretrained.with_images`.
    """
    loaded: Pretrained = writer.loaded
    if loaded.model.sees_images or any(prompt.images for prompt in prompts):
        own = [_messages(prompt, system) if chat or prompt.messages else prompt.text for prompt in prompts]
        return loaded.with_images(own, [prompt.images for prompt in prompts], [prompt.where for prompt in prompts])
    found = []
    for prompt in prompts:
        if not (chat or prompt.messages):
            try:
                found += writer.ids([prompt.text])
            except ConfigError as error:
                raise ConfigError(f"{prompt.where}: {error}") from None
            continue
        template = loaded.chat_template
        for token in template.control_tokens():
            if loaded.tokenizer.token_id(token) is None:
                raise ConfigError(f"{prompt.where}: the chat template writes {token}, no token of the tokenizer's")
        rendered = template.render(_messages(prompt, system), add_generation_prompt=True, record=prompt.where)
        found.append([*loaded.tokenizer.pieces(rendered.text).ids])
    return Shown(found, {}, [()] * len(found))


def _messages(prompt: Prompt, system: str) -> list[dict[str, Any]]:
    own = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt.text}]
    return list(prompt.messages) or own


def _images(record: dict[str, Any], where: str, folder: Path) -> tuple[str, ...]:
    """Paths of a record's images. Raises ConfigError for what is no path."""
    if "image" in record and "images" in record:
        raise ConfigError(f'{where}: has "image" and "images": give one of them')
    paths = [record["image"]] if "image" in record else record.get("images", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f'{where}: its images are {paths!r:.60}: write "image": a path, or "images": a list of them')
    return tuple(str(folder / path) for path in paths)


def stop_tokens(writer: Writer, names: Sequence[str]) -> tuple[int, ...] | None:
    """Ids of tokens that end a text besides the model's own, by their names; None for no names.

    Raises ConfigError for one that the vocabulary does not have.
    """
    if not names:
        return None
    ids = [writer.tokenizer.token_id(name) for name in names]
    if None in ids:
        raise ConfigError(f"stop_tokens: {names[ids.index(None)]!r} is no token of the model's vocabulary")
    return (*writer.stop_ids, *ids)


def to_terminal(writer: Writer, prompt: Shown, options: Options, attention: bool = False) -> list[Written]:
    """Writes the texts after one prompt to the terminal: one text as it comes, several one below the other.

    With `attention`, below each text stands the share of attention on each image, word by word.
    """
    streams = options.beams == 1 and options.samples == 1
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def show(_: int, piece: str) -> None:
        console.print(piece, end="")
        console.file.flush()

    (texts,) = writer.write_ids(prompt.ids, options, show if streams else None, inputs=prompt.inputs)
    if streams:
        console.print()
    for number, text in enumerate(texts):
        if not streams:
            console.print(f"[{number + 1}] {text.text}" if len(texts) > 1 else text.text)
        if text.log_probs is not None:
            console.print(json.dumps({"ids": text.ids, "log_probs": text.log_probs}))
        for line in _table(_attention(writer, prompt, text)) if attention else ():
            console.print(line)
    return texts


def _table(words: Sequence[dict[str, Any]]) -> list[str]:
    """Lines with a word each, and the share of attention on each image below the image's number."""
    if not words:
        return []
    wide = min(max(cells.cell_len(each["word"]) for each in words), WORD)
    rows = [("", [f"image {number + 1}" for number in range(len(words[0]["images"]))])]
    rows += [(each["word"], [f"{share:.1%}" for share in each["images"]]) for each in words]
    return [
        word + " " * (wide - cells.cell_len(word)) + "".join(f"{share:>10}" for share in shares)
        for word, shares in rows
    ]


def converse(
    writer: Writer,
    questions: Iterable[str],
    images: Sequence[str],
    options: Options,
    system: str = "",
    attention: bool = False,
    typed: bool = False,
) -> list[dict[str, Any]]:
    """Keeps a conversation on the terminal: answers each question, with the images and all that was said before.

    Args:
      typed: someone types the questions: Ctrl-C stops an answer, not the conversation, and a question that cannot be
        answered is no error. Both are said, and the question is forgotten.

    Returns its messages. Raises ConfigError as `shown`, before the first question for the images and the template.
    """
    images = tuple(images)
    shown(writer, [Prompt(0, "--image", "", ({"role": "user", "content": "?"},), images=images)])
    messages = [{"role": "system", "content": system}] * bool(system)
    for number, question in enumerate(questions):
        if not (question := question.strip()):
            continue
        asked = [*messages, {"role": "user", "content": question}]
        prompt = Prompt(number, f"question {number + 1}", "", tuple(asked), images=images)
        try:
            ((written, *_),) = [to_terminal(writer, shown(writer, [prompt]), options, attention)]
        except (KeyboardInterrupt, ConfigError) as error:
            if not typed:
                raise
            reason = "\nstopped" if isinstance(error, KeyboardInterrupt) else str(error)
            print(f"{reason}; this question is forgotten", file=sys.stderr)
            continue
        messages = [*asked, {"role": "assistant", "content": written.text.strip()}]
    return messages


def _attention(writer: Writer, prompt: Shown, text: Written) -> list[dict[str, Any]]:
    """The words of a text after one prompt, with the share of attention on each image."""
    found = looking.by_word(writer.loaded, prompt.ids[0], text.ids, prompt.inputs, prompt.places[0])
    return [{"word": word, "images": [round(share, 4) for share in shares]} for word, shares in found]


def to_file(
    writer: Writer,
    prompts: Sequence[Prompt],
    options: Options,
    out: str,
    settings: dict[str, Any],
    batch_size: int = 8,
    chat: bool = False,
    system: str = "",
    attention: bool = False,
) -> int:
    """Writes the texts after each prompt to a file of JSON lines; run again, it goes on behind those that are there.

    Args:
      settings: what the texts depend on; kept beside the file as OUT.settings.json.

    Returns how many prompts were written to now. Raises ConfigError if the file was begun with other settings.
    """
    path, beside = Path(out), Path(f"{out}.settings.json")
    settings = json.loads(
        json.dumps(
            settings | {"options": dataclasses.asdict(options), "chat": chat, "system": system, "attention": attention}
        )
    )
    done = _written(path)
    if done and beside.exists() and (before := json.loads(beside.read_text())) != settings:
        changed = [name for name in settings if before.get(name) != settings[name]]
        raise ConfigError(f"{out}: was begun with another {', '.join(changed)}, see {beside}; give another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    left = [prompt for prompt in prompts if prompt.index not in done]
    check_images(left)  # before the first is gone on from
    if not writer.loaded.model.sees_images:
        shown(writer, left, chat, system)
    starts = range(0, len(left), batch_size)
    with path.open("a", encoding="utf-8") as file:
        for start in track(starts, f"{out}", console=Console(stderr=True), disable=not len(left)):
            batch = left[start : start + batch_size]
            given = shown(writer, batch, chat, system)
            for prompt, texts in zip(batch, writer.write_ids(given.ids, options, inputs=given.inputs)):
                looks = attention and len(prompt.images) > 0
                looked = [_attention(writer, shown(writer, [prompt], chat, system), text) for text in texts * looks]
                file.write(json.dumps(_record(prompt, texts, looked), ensure_ascii=False) + "\n")
            file.flush()
    return len(left)


def check_images(prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError for files of images that are not there."""
    for prompt in prompts:
        if missing := [path for path in prompt.images if not Path(path).is_file()]:
            why = "is a folder: give an image" if Path(missing[0]).is_dir() else "there is no such file"
            raise ConfigError(f"{prompt.where}: image {missing[0]}: {why}")


def _record(prompt: Prompt, texts: Sequence[Written], looked: Sequence[list[dict[str, Any]]] = ()) -> dict[str, Any]:
    own = {"messages": prompt.messages} if prompt.messages else {"prompt": prompt.text}
    named = {} if prompt.id is None else {"id": prompt.id}
    own |= {"images": prompt.images} if prompt.images else {}
    fields = ("text", "finish", "ids", "log_probs", "score")
    found = [{name: value for name in fields if (value := getattr(text, name)) is not None} for text in texts]
    for text, words in zip(found, looked):
        text["attention"] = words
    return {"index": prompt.index, **named, **own, "texts": found}


def _written(path: Path) -> set[int]:
    """Indices of the prompts that a file has texts of; a last line that was cut is taken away."""
    if not path.exists():
        return set()
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        done = {json.loads(line)["index"] for line in whole}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: is not a file of this script's; give another") from None
    if path.stat().st_size != sum(map(len, whole)):
        with path.open("r+b") as file:
            file.truncate(sum(map(len, whole)))
    return done
