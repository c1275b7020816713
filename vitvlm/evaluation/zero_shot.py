"""Zero-shot classification: images against the names of the classes, put into sentences (Radford et al. 2021, 3.1)."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.evaluation import base, classification, nearest, page
from vitvlm.evaluation.knn import normalise

Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
ROWS = 64  # texts of one prediction

TEMPLATES = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    # Of the 80 that CLIP was tuned with on ImageNet, the seven that its authors found to do most.
    "clip_7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}


@dataclasses.dataclass(frozen=True)
class ZeroShot(base.Evaluator):
    """Zero-shot classification: the class whose embedding is nearest to the image's.

    A class's embedding is the mean of those of its sentences, each normalised, normalised again.

    Fields:
      templates: sentences with one {} for the class's name, or the name of a set of such: "name", "photo", "clip_7".
      class_names: words for the classes in the sentences, {class of the data: words}, or a word for each class in the
        order of the data's.
      scale: factor of the cosines for the probabilities in examples.npz, on which no metric depends; 100 is CLIP's
        after training.
      max_images: the most images on the page; 0 for no page.

    Metrics and files are those of `Classification`, but for the loss. Where pictures are given, `page.html` shows what
    is taken for what, the worst classes, and the images nearest to each class, the classes nearest to each image.
    """

    labelled: ClassVar[bool] = True

    batches: base.Batches
    tokenize: Tokenize
    label_names: tuple[str, ...]
    matched: str = ""
    templates: str | tuple[str, ...] = "photo"
    class_names: Mapping[str, str] | tuple[str, ...] | None = None
    scale: float = 100.0
    max_images: int = 500
    picture: page.Picture | None = None
    example_id: Callable[[int], str] = str

    def __post_init__(self) -> None:
        page.check_room(self.max_images)
        self._words()
        sentences(self.templates)

    def _words(self) -> tuple[str, ...]:
        """Returns the words for each class. Raises ConfigError for words that do not fit the classes."""
        given = self.class_names or ()
        if isinstance(given, Mapping):
            for name in given:
                if name not in self.label_names:
                    raise ConfigError(f"class_names: the data has no class {name!r}; {suggest(name, self.label_names)}")
            return tuple(given.get(name, name) for name in self.label_names)
        if given and len(given) != len(self.label_names):
            raise ConfigError(f"class_names: {len(given)} names for {len(self.label_names)} classes of the data")
        return tuple(given) or self.label_names

    @property
    def metrics(self) -> tuple[str, ...]:
        return classification.score_names(len(self.label_names))

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        names = self._words()
        templates = sentences(self.templates)
        classes = class_embeddings(predict, variables, self.tokenize, names, templates)
        whole = base.labelled(base.per_example(predict, "image_embedding", variables, self.batches))
        images, labels = normalise(whole["embedding"].astype(np.float64)), whole["label"]
        logits = nearest.similarities(images, classes)
        classification.check_labels(labels, len(names))
        metrics, prediction = classification.scores(logits, labels), logits.argmax(axis=1)
        correct = prediction == labels
        classification.save(folder, whole["index"], labels, self.scale * logits, tuple(names), self.example_id)
        classification.write_classes(pathlib.Path(folder) / "classes.csv", labels, prediction, tuple(names))
        protocol = (
            f"zero-shot classification, {len(names)} classes, {len(templates)} templates ({templates[0]!r}"
            f"{', …' * (len(templates) > 1)}), n={len(labels)}, {classification.interval_protocol()}"
            f"{base.notes(self.matched)}"
        )
        result = base.Result(metrics, protocol)
        searchable = page.Searchable(
            pairs=nearest.Pairs(images, classes, labels, np.arange(len(names))),
            text_ranks=_first_right(logits, labels),
            image_ranks=classification.label_ranks(logits, labels),
            strings=lambda places: [names[place] for place in places],
            order=np.argsort(_accuracies(labels, correct, len(names)), kind="stable"),
        )
        title = f"Zero-shot classification: {len(labels):,} images, {len(names):,} classes"
        ours = page.Page(title, whole["index"], searchable, page.Classified(labels, prediction, tuple(names)))
        return page.write(folder, ours, result, self.max_images, self.picture, self.example_id)


def class_embeddings(
    predict: base.Predict,
    variables: base.Variables,
    tokenize: Tokenize,
    names: Sequence[str],
    templates: Sequence[str],
) -> Float[np.ndarray, "S E"]:
    """One unit vector per class."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    rows = []
    for start in range(0, len(texts), ROWS):
        some = texts[start : start + ROWS]
        ids, mask = tokenize(some + some[:1] * (ROWS - len(some)))  # always as many: compiled once
        rows.append(
            predict("text_embedding", variables, {"text_tokens": ids, "text_mask": mask})["embedding"][: len(some)]
        )
    each = normalise(np.concatenate(rows).astype(np.float64)).reshape(len(names), len(templates), -1)
    return normalise(each.mean(axis=1))


def _first_right(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " S"]:
    """Counts, for each class, the images that rank before the first of its own, equal ones in order; n without any."""
    n, classes = logits.shape
    ranks = np.full(classes, n)
    for label in np.unique(labels):
        column, own = logits[:, label], labels == label
        best = column[own].max()
        first = np.flatnonzero(own & (column >= best - nearest.TIE))[0]
        ranks[label] = nearest.before(column, best, np.arange(n) < first).sum()
    return ranks


def _accuracies(
    labels: Int[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, " S"]:
    """Returns the accuracy of each class; infinity for a class without images, which sorts it after all others."""
    total = np.bincount(labels, minlength=classes)
    right = np.bincount(labels, weights=correct, minlength=classes)
    return np.where(total > 0, right / np.maximum(total, 1), np.inf)


def sentences(given: str | Sequence[str]) -> tuple[str, ...]:
    """The templates themselves, or those of a set in `TEMPLATES`. Raises ConfigError for others."""
    if isinstance(given, str):
        if given not in TEMPLATES:
            raise ConfigError(
                f"templates: no set {given!r}; there is {', '.join(TEMPLATES)}, or give sentences with {{}}"
            )
        return TEMPLATES[given]
    if bad := [template for template in given if template.count("{}") != 1]:
        raise ConfigError(f"templates: {bad[0]!r} needs one {{}} for the class's name")
    return tuple(given)
