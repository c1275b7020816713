"""Check, before any batch is made, that no image of a source has more texts than the operations take."""

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations import Pipeline, text
from vitvlm.data.sources.base import Source


def check_texts(source: Source, pipeline: Pipeline, where: str) -> None:
    """Raises ConfigError if some example has more texts than `tokenize` takes; the message says how many it must take.

    Every example's texts are looked at, without its image. What a source cannot tell without reading its images is not
    checked, and shows when it is read; so does an example that cannot be read.
    """
    for place, operation in enumerate(pipeline.operations):
        if operation.function is not text.tokenize:
            continue
        given = operation.arguments
        name, most, separator = given["field"], given["max_texts"], given["separator"]
        earlier = pipeline.operations[:place]
        picked = any(each.function is text.pick_text and each.arguments["to"] == name for each in earlier)
        if picked or not text.is_error(given["surplus"]) or not source.has_quick_texts:
            continue
        if separator is None and source.holds_one_text(name):
            continue
        counts = [_count(source, index, name, separator) for index in range(len(source))]
        if (needed := max(counts)) > most:
            over, worst = sum(count > most for count in counts), source.ids[counts.index(needed)]
            raise ConfigError(
                f"{where}: operation {operation.text}: {over:,} of the {len(source):,} images of {source.name} have "
                f"more texts in {name!r}, up to {needed} ({worst}): {text.way_out(needed, most)}"
            )


def _count(source: Source, index: int, name: str, separator: str | None) -> int:
    try:
        return len(text.texts_of(source.text(index, name), separator))
    except UnreadableImage:
        return 0


def texts_rule(pipeline: Pipeline) -> str:
    """Words for the protocol about texts that are left out: "the first 5 texts of each image"; "" if none are."""
    for operation in pipeline.operations:
        if operation.function is text.tokenize and not text.is_error(operation.arguments["surplus"]):
            most = operation.arguments["max_texts"]
            return "the first text of each image" if most == 1 else f"the first {most} texts of each image"
    return ""
