"""Chat templates from the files that come with a tokenizer: a Hugging Face folder, or a GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitvlm.core import files, json_texts
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import tokenizers
from vitvlm.data.chat import ChatTemplate, Rendered
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers.gguf import header_of, special_ids

DEFAULT = "default"
ALONE, MORE = "chat_template.jinja", "additional_chat_templates"  # the files of today
OLDER = ("chat_template.json", "tokenizer_config.json")  # with an entry "chat_template"
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def read(spec: str, name: str = DEFAULT) -> ChatTemplate:
    """The chat template beside a tokenizer.

    Args:
      spec: of the tokenizer, "hf:FOLDER" or "gguf:FILE", see `data.tokenizers.open`.
      name: which of several templates ("tool_use", "rag" …).

    Raises ConfigError if there is none, none of this name, or it is no Jinja; DataError for files that cannot be read.
    """
    kind, _, path = spec.partition(":")
    if kind not in READERS:
        raise ConfigError(f"tokenizer {spec!r}: has no chat template; {' and '.join(READERS)} may have one")
    found, special = READERS[kind](Path(path))
    if not found:
        raise ConfigError(f"{path}: has no chat template; it may be of a base model, which was not trained on chats")
    if name not in found:
        raise ConfigError(f"{path}: no chat template {name!r}; {suggest(name, found)}")
    return ChatTemplate(found[name], special, f"the chat template of {path}")


def encode(rendered: Rendered, template: ChatTemplate, tokenizer: tokenizers.Tokenizer) -> tokenizers.Pieces:
    """A rendered chat as tokens; the template has written BOS if there is to be one.

    Raises ConfigError for a special token of the template's that the tokenizer does not have: it would be cut into
    pieces, which no model was trained on.
    """
    check_tokens(template, tokenizer)
    return tokenizer.pieces(rendered.text)


def check_tokens(template: ChatTemplate, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises ConfigError for a special token of the template's that the tokenizer does not have."""
    missing = [token for token in template.control_tokens() if tokenizer.token_id(token) is None]
    if missing:
        raise ConfigError(
            f"{template.where}: writes {', '.join(missing)}, which the tokenizer's vocabulary does not have: it is of "
            "another model"
        )


def _of_folder(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The templates of a Hugging Face folder by name, and its special tokens."""
    folder = path if path.is_dir() else path.parent
    found: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", *reversed(OLDER)):
        if (folder / name).is_file():
            described = _read_json(folder / name)
            config |= described
            found |= _named(described.get("chat_template"), folder / name)
    if (folder / ALONE).is_file():
        found[DEFAULT] = _read_text(folder / ALONE)
    found |= {file.stem: _read_text(file) for file in sorted((folder / MORE).glob("*.jinja"))}
    tokens = {name: config.get(f"{name}_token") for name in SPECIAL}
    written = {f"{name}_token": each["content"] if isinstance(each, Mapping) else each for name, each in tokens.items()}
    return found, {name: token for name, token in written.items() if isinstance(token, str)}


def _of_gguf(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The templates of a GGUF file by name, and its special tokens."""
    header = header_of(path)
    prefix = "tokenizer.chat_template"
    found = {
        key.removeprefix(prefix).removeprefix(".") or DEFAULT: value
        for key, value in header.metadata.items()
        if key == prefix or key.startswith(f"{prefix}.")
    }
    tokens = header.metadata["tokenizer.ggml.tokens"]
    return found, {f"{name}_token": tokens[i] for name, i in special_ids(header).items()}


READERS = {"hf": _of_folder, "gguf": _of_gguf}


def _named(templates: Any, file: Path) -> dict[str, Any]:
    """Templates by name: one text is the default's; a list has names."""
    if templates is None:
        return {}
    if isinstance(templates, str):
        return {DEFAULT: templates}
    try:
        return {each["name"]: each["template"] for each in templates}
    except (TypeError, KeyError):
        raise DataError(f"{file}: chat_template is neither text nor a list of a name and a template each") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json_texts.loads(_read_text(file))
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(f"{file}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{file}: is not a JSON object")
    return value


def _read_text(file: Path) -> str:
    try:
        return files.read_text(file, files.LARGEST_VOCABULARY)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
