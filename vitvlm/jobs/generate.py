"""Texts from a language model: prompts from the command line or a file, to the terminal or to a file."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import track

from vitvlm import generation, pretrained
from vitvlm.core.config import ConfigError, suggest
from vitvlm.generation import Options, Writer
from vitvlm.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as the user gave it.

    Attributes:
      index: its number among all; where: what errors call it.
      text: of it; messages: of a chat, each with "role" and "content", where it is one; the text is "" then.
      id: the record's own name, if it has one.
    """

    index: int
    where: str
    text: str
    messages: tuple[dict[str, Any], ...] = ()
    id: Any = None


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


def read_prompts(lines: TextIO, where: str) -> Iterator[Prompt]:
    """Prompts of a file: JSON objects with "prompt" or "messages" and perhaps "id", or a prompt a line as it is.

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
        if "prompt" in record and not text:
            raise ConfigError(f'{here}: "prompt" is empty: give it a text to go on from')
        yield Prompt(number, here, text, tuple(record.get("messages", ())), record.get("id"))


def ids_of(writer: Writer, prompts: Sequence[Prompt], chat: bool = False, system: str = "") -> list[list[int]]:
    """The ids that the model goes on from.

    Args:
      chat: whether a plain text is a user's message, which the tokenizer's chat template makes a chat of; one of
        messages is so in any case.
      system: a message that stands before such a text.

    Raises ConfigError for an empty text and for a model without tokenizer, or chat template where one is needed, or
    whose tokenizer does not know the template's tokens.
    """
    loaded: Pretrained = writer.loaded
    found = []
    for prompt in prompts:
        if not (chat or prompt.messages):
            try:
                found += writer.ids([prompt.text])
            except ConfigError as error:
                raise ConfigError(f"{prompt.where}: {error}") from None
            continue
        own = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt.text}]
        template = loaded.chat_template
        for token in template.control_tokens():
            if loaded.tokenizer.token_id(token) is None:
                raise ConfigError(f"{prompt.where}: the chat template writes {token}, no token of the tokenizer's")
        rendered = template.render(prompt.messages or own, add_generation_prompt=True, record=prompt.where)
        found.append([*loaded.tokenizer.pieces(rendered.text).ids])
    return found


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


def to_terminal(writer: Writer, prompt: Sequence[int], options: Options) -> None:
    """Writes the texts after one prompt to the terminal: one text as it comes, several one below the other."""
    streams = options.beams == 1 and options.samples == 1
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def show(_: int, piece: str) -> None:
        console.print(piece, end="")
        console.file.flush()

    (texts,) = writer.write_ids([prompt], options, show if streams else None)
    if streams:
        console.print()
    for number, text in enumerate(texts):
        if not streams:
            console.print(f"[{number + 1}] {text.text}" if len(texts) > 1 else text.text)
        if text.log_probs is not None:
            console.print(json.dumps({"ids": text.ids, "log_probs": text.log_probs}))


def to_file(
    writer: Writer,
    prompts: Sequence[Prompt],
    options: Options,
    out: str,
    settings: dict[str, Any],
    batch_size: int = 8,
    chat: bool = False,
    system: str = "",
) -> int:
    """Writes the texts after each prompt to a file of JSON lines; run again, it goes on behind those that are there.

    Args:
      settings: what the texts depend on; kept beside the file as OUT.settings.json.

    Returns how many prompts were written to now. Raises ConfigError if the file was begun with other settings.
    """
    path, beside = Path(out), Path(f"{out}.settings.json")
    settings = json.loads(
        json.dumps(settings | {"options": dataclasses.asdict(options), "chat": chat, "system": system})
    )
    done = _written(path)
    if done and beside.exists() and (before := json.loads(beside.read_text())) != settings:
        changed = [name for name in settings if before.get(name) != settings[name]]
        raise ConfigError(f"{out}: was begun with another {', '.join(changed)}, see {beside}; give another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    left = [prompt for prompt in prompts if prompt.index not in done]
    ids = ids_of(writer, left, chat, system)  # all of them, before the first is gone on from
    starts = range(0, len(left), batch_size)
    with path.open("a", encoding="utf-8") as file:
        for start in track(starts, f"{out}", console=Console(stderr=True), disable=not len(left)):
            batch = left[start : start + batch_size]
            for prompt, texts in zip(batch, writer.write_ids(ids[start : start + batch_size], options)):
                file.write(json.dumps(_record(prompt, texts), ensure_ascii=False) + "\n")
            file.flush()
    return len(left)


def _record(prompt: Prompt, texts: Sequence[generation.Written]) -> dict[str, Any]:
    own = {"messages": prompt.messages} if prompt.messages else {"prompt": prompt.text}
    named = {} if prompt.id is None else {"id": prompt.id}
    fields = ("text", "finish", "ids", "log_probs", "score")
    found = [{name: value for name in fields if (value := getattr(text, name)) is not None} for text in texts]
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
