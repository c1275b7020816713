"""Questions about images, each an example: VQAv2, Visual Genome's questions and regions, easy-VQA."""

import functools
import importlib.util
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import splits, stat_data
from vitvlm.data.accounting import Files
from vitvlm.data.errors import DataError
from vitvlm.data.kinds import Field, Fields
from vitvlm.data.sources import table
from vitvlm.data.sources.base import Example
from vitvlm.data.sources.columns import as_fields
from vitvlm.data.sources.conversing import files, read_json
from vitvlm.data.sources.directories import entries, files_of, read
from vitvlm.data.sources.labels import USUAL, Labelling

BOXES = "boxes"
VG_FOLDERS = ("VG_100K", "VG_100K_2", "")  # below the folder of Visual Genome's images
EASY_TYPES = ("yes_no", "colour", "shape")
VG_KINDS = {"qas": "qa_id", "regions": "region_id"}
_SUBTYPE = re.compile(r"(?:v2_)?(?:OpenEnded|MultipleChoice)_mscoco_(\w+)_questions")


class AskedSource(table.TableSource):
    """One example per row: an image, of which other rows may ask too, and texts.

    A row has "id", "image" (a path from `root`), perhaps "boxes" (left, top, right, bottom in pixels, a row each),
    "label" and "split"; any other column becomes a text field. Without splits, "train" is nine tenths of the images, by
    a hash of their paths, so that no image is in both.

    Raises:
      DataError: if there is no row, or only some have a label or a split.
      ConfigError: if the rows have no such split.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        root: Path,
        split: str,
        where: str,
        labelling: Labelling = USUAL,
    ):
        named: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if row["id"] in named:
                raise DataError(f"{where}: two rows have the id {row['id']!r}")
            own = row.get("split") or splits.by_shares(row["image"], {"test": table.TEST_SHARE})
            named[row["id"]] = {**row, "split": own}
        found = table.read(named, split, where, labelling, "question")
        self._take(found)
        self._root, self._where = root, where
        self._ids = list(found.names)
        self._rows = [named[name] for name in self._ids]
        self._listed = list(dict.fromkeys(row["image"] for row in named.values()))
        columns = dict.fromkeys(name for row in named.values() for name in row)
        self._texts = [name for name in columns if name not in ("id", "image", "label", "split", BOXES)]
        self._has_boxes = BOXES in columns

    @property
    def fields(self) -> Fields:
        return super().fields | ({BOXES: Field("boxes")} if self._has_boxes else {})

    @property
    def groups(self) -> Sequence[str]:
        return [row["image"] for row in self._rows]

    @functools.cached_property
    def files(self) -> tuple[Files, ...]:
        """The images that are asked of, and those in the same directories that are not."""
        own = {id_: [row["image"]] for id_, row in zip(self._ids, self._rows, strict=True)}
        return (files_of(self._root, self._listed, self._where, own),)

    def __str__(self) -> str:
        return f"{len(self):,} questions of {len({row['image'] for row in self._rows}):,} images"

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        return as_fields({name: self._rows[index].get(name)}).get(name) if name in self._texts else None

    def stamps(self) -> Mapping[str, str]:
        """Returns, for each question, its image's size and time, and a checksum of its row."""
        described = stat_data.described({row["image"]: self._root / row["image"] for row in self._rows})
        return {
            id_: f"{described[row['image']]} {zlib.crc32(repr(sorted(row.items())).encode('utf-8', 'replace')):08x}"
            for id_, row in zip(self._ids, self._rows, strict=True)
        }

    def __getitem__(self, index: int) -> Example:
        image = self._rows[index]["image"]
        return self.outline(index) | {"image": read(self._root / image, self._ids[index], f"{self._root / image}: ")}

    def outline(self, index: int) -> Example:
        row = self._rows[index]
        example: Example = as_fields({name: row.get(name) for name in self._texts}) | {"image": b""}
        if self._has_boxes:
            example[BOXES] = np.asarray(row[BOXES], np.float32).reshape(-1, 4)
        return example | {"id": self._ids[index]} | ({"label": self._labels[index]} if self.labelled else {})


def open_vqa(place: str, split: str) -> AskedSource:
    """VQAv2: "QUESTIONS.json:IMAGES", or "QUESTIONS.json:ANNOTATIONS.json:IMAGES"; see `sources.open`.

    The annotations are by default the official file beside the questions; those of a test split may be missing. An
    example has "question", "answer" (the usual one, None where there are no annotations), "answers" (all that people
    gave), "answer_type", "question_type" and "image_id". A file is one split: "all", or its own name.
    """
    first, _, rest = place.partition(".json:")
    questions, images = (f"{first}.json", rest) if rest else (place, "")
    annotations, _, after = images.partition(".json:")
    given = f"{annotations}.json" if after or images.endswith(".json") else ""
    images = after if given and after else "" if given else images
    _, file, root = files(questions + (f":{images}" if images else ""), "vqa")
    content = read_json(file)
    subtype = _checked(content, file, "questions").get("data_subtype") or _subtype(file)
    if not isinstance(subtype, str):
        raise DataError(f"{file}: 'data_subtype' is no name: {subtype!r:.60}")
    own = re.sub(r"[\d-].*", "", subtype) or "all"
    if split not in ("all", own):
        raise ConfigError(f"vqa:{place}: no split {split!r}; each file is one split: write split='all' or {own!r}")
    if not images and not _is_there(root, subtype, content["questions"]):
        root = next((at for at in (file.parent / subtype, file.parent.parent / subtype) if at.is_dir()), root)
    told = _annotations(Path(given).expanduser() if given else _beside(file), bool(given), own, file)
    rows = _vqa_rows(content["questions"], told, file, entries(root), subtype)
    return AskedSource(({**row, "split": own} for row in rows), root, "all", f"vqa:{place}")


def open_visual_genome(place: str, split: str) -> AskedSource:
    """Visual Genome's question_answers.json or region_descriptions.json, "FILE.json" or "FILE.json:IMAGES".

    Images are in VG_100K and VG_100K_2 below IMAGES, or in IMAGES itself. Of a question an example has "question" and
    "answer"; of a region "phrase" and its "boxes", float32 [1, 4]. No image is in both "train" and "test".
    """
    _, file, root = files(place, "visual_genome")
    where: dict[str, str] = {}
    for folder in reversed(VG_FOLDERS):
        where |= {name: os.path.join(folder, name) for name in entries(root / folder)}
    rows = list(_vg_rows(read_json(file), file, where))
    return AskedSource(rows, root, split, f"visual_genome:{place}")


def open_easy_vqa(place: str, split: str) -> AskedSource:
    """easy-VQA (MIT) where PyPI's package `easy-vqa` is installed, with its splits; the label is the answer.

    `place` may name the types of questions that are taken, "colour,shape" for those not answered by yes or no.
    """
    kinds = tuple(kind for kind in place.split(",") if kind)
    for kind in kinds:
        if kind not in EASY_TYPES:
            raise ConfigError(f"data source 'easy_vqa:{place}': {suggest(kind, EASY_TYPES)}")
    found = importlib.util.find_spec("easy_vqa")
    if found is None or not found.submodule_search_locations:
        raise DataError("easy_vqa: is not installed; pip install easy-vqa==1.0")
    data = Path(next(iter(found.submodule_search_locations))) / "data"
    if split not in ("train", "test"):
        raise ConfigError(f"easy_vqa: no split {split!r}; {suggest(split, ('train', 'test'))}")
    content = read_json(data / split / "questions.json")
    names = (data / "answers.txt").read_text(encoding="utf-8").split()
    rows = (
        {
            "id": f"{split}-{number}",
            "image": f"{image}.png",
            "question": question,
            "answer": answer,
            "label": answer,
            "question_type": kind,
            "split": split,
        }
        for number, (question, answer, image) in enumerate(content)
        if (kind := _easy_type(question, answer)) in (kinds or EASY_TYPES)
    )
    return AskedSource(rows, data / split / "images", split, "easy_vqa", Labelling(label_names=names))


def _easy_type(question: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no"
    return "colour" if "color" in question else "shape"


def _checked(content: Any, file: Path, name: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping) or not isinstance(content.get(name), list):
        raise DataError(f"{file}: is not VQA's file of {name}: it has no list {name!r}")
    return content


def _subtype(file: Path) -> str:
    found = _SUBTYPE.fullmatch(file.stem)
    return found[1] if found else ""


def _beside(file: Path) -> Path:
    name = file.name.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("_questions", "_annotations")
    return file.with_name(name)


def _annotations(path: Path, given: bool, split: str, questions: Path) -> dict[str, Mapping[str, Any]] | None:
    """Annotations by question id; None where there are none, as of a test split."""
    if not path.is_file() or path == questions:
        if given or not split.startswith("test"):
            raise DataError(
                f"vqa: {questions}: no annotations {path}: name them: QUESTIONS.json:ANNOTATIONS.json:IMAGES"
            )
        return None
    notes = _checked(read_json(path), path, "annotations")["annotations"]
    try:
        return {str(note["question_id"]): note for note in notes}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an annotation lacks {error}") from None


def _is_there(root: Path, subtype: str, questions: Sequence[Mapping[str, Any]]) -> bool:
    there = entries(root)
    return not questions or _image_name(there, subtype, questions[0].get("image_id")) in there


def _image_name(there: Mapping[str, Any], subtype: str, image_id: Any) -> str:
    """COCO's name of an image, of 2014 or of 2017, whichever is there."""
    number = f"{image_id:012d}.jpg" if isinstance(image_id, int) else f"{image_id}.jpg"
    names = (f"COCO_{subtype}_{number}", number, f"{image_id}.jpg", f"{image_id}.png")
    return next((name for name in names if name in there), names[0])


def _vqa_rows(
    questions: Sequence[Mapping[str, Any]],
    told: Mapping[str, Mapping[str, Any]] | None,
    file: Path,
    there: Mapping[str, Any],
    subtype: str,
) -> Iterator[dict[str, Any]]:
    for number, asked in enumerate(questions, 1):
        try:
            id_ = str(asked["question_id"])
            row = {"id": id_, "image": _image_name(there, subtype, asked["image_id"]), "question": asked["question"]}
            row["image_id"] = asked["image_id"]
            if told is not None:
                note = told[id_]
                if note["image_id"] != asked["image_id"]:
                    raise DataError(f"{file}: question {id_}: its annotation is of image {note['image_id']}")
                row |= {"answer": note["multiple_choice_answer"], "answers": [a["answer"] for a in note["answers"]]}
                row |= {name: note.get(name) for name in ("answer_type", "question_type")}
            else:
                row |= {"answer": None, "answers": []}
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}: question {number}: lacks {error}, in it or in its annotation") from None
        yield row


def _vg_rows(content: Any, file: Path, where: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], Mapping) else {}
    kind = next((name for name in VG_KINDS if name in first), None)
    if kind is None:
        raise DataError(f"{file}: is neither Visual Genome's questions ('qas') nor its regions ('regions')")
    for number, entry in enumerate(content, 1):
        try:
            for said in entry[kind]:
                image = said.get("image_id", entry.get("id", entry.get("image_id")))
                name = f"{image}.jpg"
                row = {"id": str(said[VG_KINDS[kind]]), "image": where.get(name, name), "image_id": image}
                if kind == "qas":
                    yield row | {"question": said["question"], "answer": said["answer"]}
                else:
                    x, y, width, height = (float(said[side]) for side in ("x", "y", "width", "height"))
                    yield row | {"phrase": said["phrase"], BOXES: [[x, y, x + width, y + height]]}
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise DataError(f"{file}: entry {number}: {type(error).__name__} {error}") from None
