"""Problems of a scanned set by kind, and the examples and captions that dropping a kind removes."""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from vitvlm.core.config import ConfigError, suggest
from vitvlm.jobs.prepare import hashes, letters
from vitvlm.jobs.prepare.captions import fault, is_shallow, key
from vitvlm.jobs.prepare.records import key as key_of_text
from vitvlm.jobs.prepare.scan import Scan


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of problem: what the report calls it, what it means, and whether it is about captions or instructions."""

    title: str
    meaning: str
    of_captions: bool = False
    of_records: bool = False


KINDS = {
    "unreadable": Kind("unreadable images", "cannot be decoded; they are always left out"),
    "text_in_image": Kind(
        "text in the image", f"{letters.SUSPECT} or more letter-like parts stand in rows; suspects, by a heuristic"
    ),
    "duplicates": Kind("duplicates", "the same pixels as an earlier image"),
    "near_duplicates": Kind(
        "near-duplicates",
        f"difference hashes within {hashes.FARTHEST} of {hashes.BITS} bits, and colours alike; other pixels",
    ),
    "empty": Kind("empty captions", "examples without any caption", True),
    "file_name": Kind("file names", "captions that only name the file: a camera's counter, or the file's stem", True),
    "one_word": Kind("one-word captions", "captions of a single word", True),
    "shallow": Kind("shallow captions", "captions that say one thing of the image, or none: “a photo of a cat”", True),
    "duplicate_captions": Kind(
        "duplicate captions", "captions that are another example's, but for case and spaces", True
    ),
    "missing": Kind("images missing", "files that are named and not there; they are always left out", of_records=True),
    "markers": Kind("markers without image", "texts with more markers than images", of_records=True),
    "unmarked": Kind("images without marker", "texts with markers, but fewer of them than images", of_records=True),
    "no_answer": Kind("no answer", "records without a word to learn", of_records=True),
    "unusable_chats": Kind("unusable chats", "chats that begin with the assistant, or are none", of_records=True),
    "duplicate_questions": Kind(
        "duplicate questions", "the same question of the same images as an earlier record, or of none", of_records=True
    ),
}


OF_TEXTS = ("markers", "unmarked", "no_answer", "unusable_chats")  # kinds by which records are wrong by themselves
WITHOUT_CAPTIONS = "without_captions"  # how examples are dropped whose captions have all been


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem found in a set.

    Attributes:
      examples: positions in the scan: one, or a pair of which the first is kept.
      caption: the caption at fault.
      note: more about it, for people.
    """

    examples: tuple[int, ...]
    caption: str = ""
    note: str = ""


Findings = Mapping[str, Sequence[Finding]]


@dataclasses.dataclass(frozen=True)
class Decision:
    """Examples and captions that are kept, and counts of those that are dropped.

    Attributes:
      captions: by position in the scan, the captions that an example keeps; positions that are not here are dropped.
      dropped: examples by kind; WITHOUT_CAPTIONS are those whose captions were all dropped.
      dropped_captions: captions by kind.
    """

    captions: Mapping[int, tuple[str, ...]]
    dropped: Mapping[str, int]
    dropped_captions: Mapping[str, int]


def find(scan: Scan) -> Findings:
    """All problems by kind, every kind present. Without a caption field no caption is at fault."""
    found: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    order = _keeping_order(scan)
    for i, one in enumerate(scan.seen):
        if one.unreadable:
            found["unreadable"].append(Finding((i,), note=one.unreadable))
        if one.letters >= letters.SUSPECT:
            found["text_in_image"].append(Finding((i,), note=f"{one.letters} letter-like parts"))
        if scan.caption_field is not None and not one.captions:
            found["empty"].append(Finding((i,)))
        for caption in one.captions:
            if (kind := fault(caption, one.id)) is not None:
                found[kind].append(Finding((i,), caption))
            elif is_shallow(caption):
                found["shallow"].append(Finding((i,), caption))
    readable = [i for i in order if scan.seen[i].pixels]
    first: dict[bytes, int] = {}
    for i in readable:
        kept = first.setdefault(scan.seen[i].pixels, i)
        # An image may be asked many things, though not in training and in a test.
        if kept != i and not (scan.seen[i].told and scan.seen[i].split == scan.seen[kept].split):
            found["duplicates"].append(Finding((kept, i), note=_sides(scan, kept, i)))
    alone = [i for i in first.values() if scan.seen[i].images == 1]
    found["near_duplicates"] = [Finding(pair, note=_sides(scan, *pair)) for pair in _near(scan, alone)]
    _find_in_records(scan, order, found)
    said: dict[str, int] = {}
    for i in order:
        for caption in scan.seen[i].captions:
            kept = said.setdefault(key(caption), i)
            if kept != i:
                found["duplicate_captions"].append(Finding((kept, i), caption, _sides(scan, kept, i)))
    return found


def _find_in_records(scan: Scan, order: Sequence[int], found: dict[str, list[Finding]]) -> None:
    """Adds what is wrong with instructions."""
    asked: dict[tuple[bytes, str], int] = {}
    for i in order:
        one = scan.seen[i]
        if one.missing:
            found["missing"].append(Finding((i,), note=one.unreadable))
        if one.told is None:
            continue
        if one.told.fault:
            found[one.told.fault].append(Finding((i,), note=one.told.note))
        if one.told.markers > one.images:
            found["markers"].append(Finding((i,), note=f"{one.told.markers} markers, {one.images} images"))
        if 0 < one.told.markers < one.images:
            found["unmarked"].append(Finding((i,), note=f"{one.told.markers} markers, {one.images} images"))
        question = key_of_text(one.told.question)
        if not question or one.unreadable:
            continue
        kept = asked.setdefault((one.pixels, question), i)
        if kept != i:
            answers = (scan.seen[kept].told.answer, one.told.answer)
            other = "" if answers[0] == answers[1] else f"answers differ: “{answers[0]:.40}”, “{answers[1]:.40}”"
            note = "; ".join(filter(None, (_sides(scan, kept, i), other)))
            found["duplicate_questions"].append(Finding((kept, i), one.told.question, note))


def check(drop: Collection[str], has_captions: bool, has_records: bool = True) -> None:
    """Raises ConfigError for an unknown kind, or one that cannot be dropped here."""
    for kind in drop:
        if kind not in KINDS:
            raise ConfigError(f"--drop={kind}: no such kind; {suggest(kind, KINDS)}")
        if KINDS[kind].of_captions and not has_captions:
            raise ConfigError(f"--drop={kind}: the source has no captions; name their field with --caption_field")
        if KINDS[kind].of_records and not has_records:
            raise ConfigError(f"--drop={kind}: the source has no instructions: nothing is asked and answered in it")
    if "near_duplicates" in drop and "duplicates" not in drop:
        raise ConfigError(
            "--drop=near_duplicates: duplicates are nearer still; write --drop=duplicates,near_duplicates"
        )


def decide(scan: Scan, found: Findings, drop: Collection[str]) -> Decision:
    """Decides what stays when the kinds in `drop` are dropped; unreadable examples always are. Nothing counts twice.

    Examples that are wrong by themselves are dropped first, so that of two equal images the one with a good caption
    stays. One of several duplicates stays: one outside "train", since a test set must stay what it is, otherwise the
    first. Kinds of captions remove captions, and with its last caption the example.
    """
    order = _keeping_order(scan)
    kept = {i: scan.seen[i].captions for i in order}
    dropped: collections.Counter[str] = collections.Counter()
    dropped_captions: collections.Counter[str] = collections.Counter()

    def remove(kind: str, places: Iterable[int]) -> None:
        for place in places:
            if kept.pop(place, None) is not None:
                dropped[kind] += 1

    def keep_captions(kind_of: Callable[[int, str], str | None]) -> None:
        for place, captions in list(kept.items()):
            kinds = [kind_of(place, caption) for caption in captions]
            dropped_captions.update(kind for kind in kinds if kind)
            kept[place] = tuple(caption for caption, kind in zip(captions, kinds) if kind is None)
            if captions and not kept[place]:
                remove(WITHOUT_CAPTIONS, [place])

    for kind in ("missing", "unreadable", "text_in_image", "empty", *OF_TEXTS):
        if kind in drop or kind in ("missing", "unreadable"):
            remove(kind, [finding.examples[0] for finding in found[kind]])
    faults = {
        (finding.examples[0], finding.caption): kind
        for kind in ("file_name", "one_word", "shallow")
        if kind in drop
        for finding in found[kind]
    }
    keep_captions(lambda place, caption: faults.get((place, caption)))
    standing: dict[bytes, int] = {}  # for each image the example that stays
    if "duplicates" in drop:
        for place in [i for i in kept if scan.seen[i].pixels]:
            first = standing.setdefault(scan.seen[place].pixels, place)
            if first != place and not (scan.seen[place].told and scan.seen[place].split == scan.seen[first].split):
                remove("duplicates", [place])
    if "near_duplicates" in drop:
        near = collections.defaultdict(list)
        for finding in found["near_duplicates"]:
            one, other = (scan.seen[i].pixels for i in finding.examples)
            near[one].append(other)
            near[other].append(one)
        others = collections.defaultdict(list)
        for place in kept:
            others[scan.seen[place].pixels].append(place)
        for place in list(kept):
            if place in kept:  # whatever is near to one that stays goes
                remove("near_duplicates", [i for image in near[scan.seen[place].pixels] for i in others[image]])
    if "duplicate_questions" in drop:
        remove("duplicate_questions", [f.examples[1] for f in found["duplicate_questions"] if f.examples[0] in kept])
    if "duplicate_captions" in drop:
        said: dict[str, int] = {}
        again = "duplicate_captions"
        keep_captions(lambda place, caption: again if said.setdefault(key(caption), place) != place else None)
    return Decision({i: kept[i] for i in sorted(kept)}, dict(dropped), dict(dropped_captions))


def across_splits(scan: Scan, finding: Finding) -> bool:
    """Tells whether the examples of a finding are in different splits."""
    return len({scan.seen[i].split for i in finding.examples}) > 1


def _keeping_order(scan: Scan) -> list[int]:
    return sorted(range(len(scan.seen)), key=lambda i: (scan.seen[i].split == "train", i))


def _near(scan: Scan, places: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs among these places, which are in keeping order, of nearly the same image."""
    pairs = hashes.near_pairs(scan.hashes[places], scan.thumbnails[places])
    return [(places[a], places[b]) for a, b in pairs.tolist()]


def _sides(scan: Scan, kept: int, other: int) -> str:
    one, two = scan.seen[kept].split, scan.seen[other].split
    return "" if one == two else f"across splits: {one} and {two}"
