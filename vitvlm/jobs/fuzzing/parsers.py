"""Parsers that are fuzzed: how each is given bytes, and the errors that it may raise for them."""

import dataclasses
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vitvlm.core import files, gguf, json_texts, rules
from vitvlm.core.config import ConfigError
from vitvlm.core.durations import Clock
from vitvlm.data import operations, sources, tokenizers
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.operations.decoding import decode
from vitvlm.data.sources import tars
from vitvlm.data.sources.gzipped import GzipReader
from vitvlm.pretrained import onnx, pickles
from vitvlm.pretrained.entries import Tensors, WeightsError
from vitvlm.pretrained.npz_files import open_npz, unstacked
from vitvlm.pretrained.tensors import open_safetensors
from vitvlm.pretrained.torch_files import open_torch

PATHS = ("blocks_0/mlp/up/kernel", "head/bias", "a" * 60)


@dataclasses.dataclass(frozen=True)
class Parser:
    """One way to read bytes.

    Attributes:
      read: takes the bytes and an empty folder for files.
      errors: what it may raise.
      words: parts of its format, which a change may put in.
    """

    read: Callable[[bytes, Path], Any]
    errors: tuple[type[Exception], ...]
    words: tuple[bytes, ...] = ()


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _values(tensors: Tensors) -> None:
    for name in tensors:
        tensors[name]


def _operations(content: bytes, _: Path) -> None:
    operations.parse(_text(content))


def _durations(content: bytes, _: Path) -> None:
    Clock(8, 100, 1000).steps(_text(content), "config.total")


def _pickle(content: bytes, _: Path) -> None:
    path = Path("a")
    pickles.tensors_in(path, pickles.read(path, io.BytesIO(content)))


def _torch(content: bytes, folder: Path) -> None:
    _values(open_torch(_file(folder, "a.pth", content)))


def _safetensors(content: bytes, folder: Path) -> None:
    _values(open_safetensors(_file(folder, "a.safetensors", content)))


def _json(content: bytes, _: Path) -> None:
    json_texts.loads(content)


def _image(content: bytes, _: Path) -> None:
    decode(content, max_pixels=2**20)


def _gzip(content: bytes, _: Path) -> None:
    files.gunzip(content, 2**20)


def _rules(content: bytes, _: Path) -> None:
    rules.match([(pattern, None) for pattern in _text(content).split("\n")], PATHS, "config.optimizer.freeze")


def _tar(content: bytes, _: Path) -> None:
    file = io.BytesIO(content)
    found = tars.samples(GzipReader(file) if content.startswith(b"\x1f\x8b") else file)
    for number, sample in enumerate(found):
        if number > max(len(content), 2**20) or (sample.end < tars.END and sample.end <= sample.offset):
            raise AssertionError("samples without end")


def _zip(content: bytes, folder: Path) -> None:
    path = _file(folder, "a.npz", content)
    try:
        _values(unstacked(open_npz(path)))
    except (WeightsError, ValueError) as error:
        if type(error) not in (WeightsError, ValueError):
            raise
    _values(open_torch(path))


def _npy(content: bytes, folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.npz", "w") as file:
        file.writestr("w.npy", content)
    _values(open_npz(folder / "a.npz"))


def _gguf(content: bytes, folder: Path) -> None:
    header = gguf.read(_file(folder, "a.gguf", content))
    for info in header.tensors.values():
        header.bytes(info.start, 1)


def _source(kind: str, name: str, after: str = "") -> Callable[[bytes, Path], None]:
    """A data source of one file: opened, and all its examples read."""

    def read(content: bytes, folder: Path) -> None:
        path = _file(folder, name, content)
        source = sources.open(f"{kind}:{path}{after.format(folder=folder)}", "all")
        list(source.first())
        source.stamps()
        len(source.files)

    return read


def _tokenizer(kind: str, name: str) -> Callable[[bytes, Path], None]:
    """A tokenizer of one file, which encodes a text and decodes it."""

    def read(content: bytes, folder: Path) -> None:
        opened = tokenizers.open(f"{kind}:{_file(folder, name, content)}", length=16, pad_id=0)
        opened.decode(opened.encode(["a cat, é", ""]).ids)

    return read


def _onnx(content: bytes, folder: Path) -> None:
    onnx.Graph.read(_file(folder, "a.onnx", content))


_DATA = (DataError, ConfigError)
_PICKLE = (b"}(", b")R", b"\x85", b"q\x00h\x00", b"ctorch\nFloatStorage\n", b"Q", b"u.", b"\x8a\xff")
_JSON = (b'{"', b"[[", b"]", b"null", b"1e999", b'"\\ud800"', b"\\u0000", b"NaN", b"-1", b"true", b",")
_ZIP = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"\x93NUMPY\x01\x00", b"'descr'", b"(-1,)", b"'|O'")
_JPEG = (b"\xff\xda", b"\xff\xc2", b"\xff\xd9", b"Exif\0\0", b"IDAT", b"iCCP", b"GIF89a", b"RIFF", b"WEBP", b"II*\0")

_TAR = (b"ustar", b"\0" * 512, b"\x80", b"\xff\xff\xff\xff", b"x", b"L", b"13 size=1\n", b"\x1f\x8b")
_ROWS = (b'"image"', b'"caption"', b'"label"', b'"messages"', b"\n", *_JSON)
_TABLE = (b"image", b"caption", b'"', b"\n", b"\r", b"\0", b",", b"label", b"split")
_PROTOBUF = (b"\x0a", b"\x12", b"\x18", b"\x3a", b"\x2a")
_OPERATIONS = (b"decode|", b"resize(", b"((", b"-", b"field=", b"**", b"lambda", b"1e999", b"[", b"f'")
_DURATIONS = (b" steps", b" epochs", b" examples", b"%", b"1e9", b"_", b".", "²".encode())
_PATTERNS = (b"(", b")*", b".*", b"+", b"{1,9}", b"|", b"\n", b"(?", b"\\1", b"[a-z]")
_SAFETENSORS = (b'"dtype"', b'"F32"', b'"shape"', b'"data_offsets"', b"[0,", *_JSON)
_GGUF = (b"GGUF", b"\x08\0\0\0", b"\x09\0\0\0", b"\xff" * 8)
_LLAVA = (b'"conversations"', b'"from"', b'"value"', b'"image"', *_JSON)
_VOCABULARY = (b"[UNK]", b"[CLS]", b"[SEP]", b"[PAD]", b"\n", b"##")

PARSERS: Mapping[str, Parser] = {
    "operations": Parser(_operations, (ConfigError,), _OPERATIONS),
    "durations": Parser(_durations, (ConfigError,), _DURATIONS),
    "rules": Parser(_rules, (ConfigError,), _PATTERNS),
    "tar": Parser(_tar, (), _TAR),
    "webdataset": Parser(_source("webdataset", "a.tar"), _DATA, (*_TAR, *_JSON)),
    "pickle": Parser(_pickle, (WeightsError,), _PICKLE),
    "torch": Parser(_torch, (WeightsError,), _PICKLE),
    "zip": Parser(_zip, (WeightsError,), _ZIP),
    "npy": Parser(_npy, (WeightsError,), _ZIP),
    "safetensors": Parser(_safetensors, (WeightsError,), _SAFETENSORS),
    "gguf": Parser(_gguf, (gguf.GGUFError,), _GGUF),
    "onnx": Parser(_onnx, (WeightsError,), (b"embeddings.cls_token", b"Constant", b"value", *_PROTOBUF)),
    "json": Parser(_json, (ValueError,), _JSON),
    "jsonl": Parser(_source("jsonl", "a.jsonl"), _DATA, _ROWS),
    "csv": Parser(_source("csv", "a.csv"), _DATA, _TABLE),
    "coco": Parser(_source("coco", "a.json", ":{folder}"), _DATA, (b'"images"', b'"annotations"', b'"id"', *_JSON)),
    "llava": Parser(_source("llava", "a.json"), _DATA, _LLAVA),
    "tokenizer": Parser(_tokenizer("hf", "tokenizer.json"), _DATA, (b'"vocab"', b'"type"', b'"merges"', *_JSON)),
    "wordpiece": Parser(_tokenizer("hf", "vocab.txt"), _DATA, _VOCABULARY),
    "sentencepiece": Parser(_tokenizer("sentencepiece", "a.model"), _DATA, (b"<unk>", b"</s>", *_PROTOBUF)),
    "images": Parser(_image, (UnreadableImage,), _JPEG),
    "gzip": Parser(_gzip, (files.RefusedFile,), (b"\x1f\x8b\x08", b"\0" * 8)),
}


def seeds(folder: Path, name: str) -> list[bytes]:
    """The corpus of a parser: the files of a folder of its name, in order."""
    return [path.read_bytes() for path in sorted(_all(folder / name)) if path.is_file()]


def _all(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()
