"""Image-text retrieval: recall at k, both ways, over the whole set, several texts per image or one."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, bootstrap, classification, nearest, page, reranking
from vitvlm.evaluation.knn import normalise
from vitvlm.evaluation.nearest import BLOCK, TIE, before

Detokenize = Callable[[np.ndarray, np.ndarray], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Retrieval(base.Evaluator):
    """Recall at k of cosine similarity, of the best embedding where an image has several.

    The right answer is among the k best of all. An image is a hit if ANY of its texts is among the k best texts; a text
    has one right image (the protocol of CLIP_benchmark and of COCO and Flickr30k). Batches hold text [B, L] or, several
    to an image, [B, T, L], and text_mask likewise, in which a row of zeros is no text.

    With `rerank` the same once more, by a model that matches (`evaluation.reranking`): so many texts nearest to each
    image, and images nearest to each text, are ordered by match_weight * logit + similarity_weight * cosine; the others
    follow in the order of their similarity.

    Metrics: image_to_text_r1 … and text_to_image_r1 … with bootstrap intervals (over images, and over texts), the
    median ranks, reranked_image_to_text_r1 … likewise, n images and texts; chance, the recall of a random order, is in
    the protocol. Where pictures are given, `page.html` shows the images nearest to each text and the texts nearest to
    each image, with at most `max_images` images (0: no page).

    Fields:
      ks: the numbers of candidates among which the right one counts as found.
      rerank: how many of the nearest candidates the matching model orders anew; 0 for none.
      match_weight, similarity_weight: factors of its logit and of the cosine in that order.
    """

    batches: base.Batches
    ks: tuple[int, ...] = (1, 5, 10)
    rerank: int = 0
    match_weight: float = 1.0
    similarity_weight: float = 1.0
    max_images: int = 500
    picture: page.Picture | None = None
    detokenize: Detokenize | None = None
    texts_rule: str = ""
    example_id: Callable[[int], str] = str

    def __post_init__(self) -> None:
        page.check_room(self.max_images)

    def check(self, facts: base.Facts) -> None:
        check_texts(facts)
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"ks: {tuple(self.ks)}; give numbers of neighbours, 1 or more each")
        if self.rerank and self.rerank < max(self.ks):
            raise ConfigError(
                f"rerank: {self.rerank}; recall at {max(self.ks)} needs as many candidates at least, or 0"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(
            f"{way}_{figure}" for way in self._ways for figure in (*(f"r{k}" for k in self.ks), "median_rank")
        ) + ("n", "texts")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"rerank": reranking.OUTPUT} if self.rerank else {}

    @property
    def _ways(self) -> tuple[str, ...]:
        ways = ("image_to_text", "text_to_image")
        return ways + tuple(f"reranked_{way}" for way in ways) if self.rerank else ways

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        found = embeddings(predict, variables, self.batches)
        to_text, to_image = ranks(found.image, found.text, found.owner)
        again = self._rerank(predict, variables, found, to_text, to_image) if self.rerank else ()
        metrics: dict[str, float] = {}
        for name, rank in zip(self._ways, (to_text, to_image, *again), strict=True):
            for k in self.ks:
                metrics |= classification.with_interval(f"{name}_r{k}", rank < k)
            metrics[f"{name}_median_rank"] = float(np.median(rank)) + 1
        n, m = len(found.image), len(found.text)
        kept = dict(zip(("reranked_image_rank", "reranked_text_rank"), again))
        bootstrap.save_examples(
            folder, found.index, image_rank=to_text, text_rank=to_image, text_owner=found.owner, **kept
        )
        shares = ", ".join(f"R@{k} {min(1, k / n):.3g}" for k in self.ks)
        which = self.texts_rule and f" ({self.texts_rule})"
        protocol = (
            f"retrieval over {n} images and {m} texts{which}, cosine similarity; an image's hit is any of its texts; "
            f"chance text to image {shares}; {classification.interval_protocol()}"
        )
        if self.rerank:
            protocol += (
                f"; reranked: the {self.rerank} nearest by {self.match_weight:g} x matching logit + "
                f"{self.similarity_weight:g} x cosine"
            )
        result = base.Result(metrics | {"n": float(n), "texts": float(m)}, protocol)
        if self.detokenize is None:
            return result
        searchable = page.Searchable(
            pairs=nearest.Pairs(found.image, found.text, np.arange(n), found.owner),
            text_ranks=to_image,
            image_ranks=to_text,
            strings=lambda places: self.detokenize(found.ids[places], found.mask[places]),
            order=np.random.default_rng(0).permutation(m),
        )
        ours = page.Page(f"Retrieval: {n:,} images, {m:,} texts", found.index, searchable)
        return page.write(folder, ours, result, self.max_images, self.picture, self.example_id)

    def _rerank(
        self,
        predict: base.Predict,
        variables: base.Variables,
        found: "Embeddings",
        to_text: Int[np.ndarray, " n"],
        to_image: Int[np.ndarray, " m"],
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
        """The ranks of both ways after re-ranking."""
        of_image = reranking.nearest(found.image, found.text, self.rerank)
        of_text = reranking.nearest(found.text, found.image, self.rerank)
        texts = reranking.Candidates(of_image, of_text).texts()
        matched = reranking.match(predict, variables, self.batches, found.index, texts, found.ids, found.mask)
        keys = np.concatenate([row * len(found.text) + each for row, each in enumerate(texts)])
        values = np.concatenate(matched)

        def scores(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            logits = values[np.searchsorted(keys, rows * len(found.text) + columns)]
            similarity = np.einsum("nke,nke->nk", found.image[rows], found.text[columns])
            return self.match_weight * logits + self.similarity_weight * similarity

        images, all_texts = (np.broadcast_to(np.arange(len(x))[:, None], x.shape) for x in (of_image, of_text))
        right = found.owner[of_image] == images, found.owner[:, None] == of_text
        return (
            reranking.reranked(of_image, scores(images, of_image), right[0], to_text),
            reranking.reranked(of_text, scores(of_text, all_texts), right[1], to_image),
        )


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of all images and texts of a set.

    Attributes:
      image, text: [n, E], or [n, M, E] of a model that has several to an image, and [m, E].
      owner: [m], each text's image, as its row in `image`.
      index: [n], each image's position in its source.
      ids, mask: [m, L], the texts' tokens.
    """

    image: Float[np.ndarray, "n *M E"]
    text: Float[np.ndarray, "m E"]
    owner: Int[np.ndarray, " m"]
    index: Int[np.ndarray, " n"]
    ids: Int[np.ndarray, "m L"]
    mask: Int[np.ndarray, "m L"]


def check_texts(facts: base.Facts) -> None:
    """Raises ConfigError if batches hold no texts."""
    if "text_tokens" not in facts.arrays:
        raise ConfigError(f"data.ops: no texts of {facts.name}; add tokenize to the operations of config.data.eval")


def embeddings(predict: base.Predict, variables: base.Variables, batches: base.Batches) -> Embeddings:
    """Embeds every image and every text once, at length 1. Raises ValueError for a set without texts."""
    whole = with_texts(predict, variables, batches)
    owner, place = np.nonzero(whole["is_text"])
    if not len(owner):
        raise ValueError("this evaluator needs texts, and every one is empty")
    each = (whole[name][owner, place] for name in ("ids", "text_mask"))
    return Embeddings(whole["image"], whole["text"][owner, place], owner, whole["index"], *each)


def with_texts(predict: base.Predict, variables: base.Variables, batches: base.Batches) -> base.Arrays:
    """Embeds all images and texts of a set, T texts to an image.

    Returns image [n, E], or [n, M, E] of several to an image, and text [n, T, E], float64 of length 1; is_text [n, T];
    index [n], each image's position in its source; and the texts' tokens, ids and text_mask [n, T, L].
    """

    def both(batch: base.Batch) -> dict[str, np.ndarray]:
        if "text_tokens" not in batch:
            raise ValueError("this evaluator needs texts: add tokenize to the operations of config.data.eval")
        text, mask = np.asarray(batch["text_tokens"]), np.asarray(batch["text_mask"])
        B, *_, L = text.shape
        text, mask = text.reshape(B, -1, L), mask.reshape(B, -1, L)
        embedded = [
            predict("text_embedding", variables, {"text_tokens": text[:, t], "text_mask": mask[:, t]})["embedding"]
            for t in range(text.shape[1])
        ]
        return {
            "image": predict("image_embedding", variables, batch)["embedding"],
            "text": np.stack(embedded, axis=1),
            "is_text": mask.any(axis=-1),
            "ids": text,
            "text_mask": mask,
        }

    whole = base.collect(batches, both)
    n, T, E = whole["text"].shape
    text = normalise(whole["text"].reshape(n * T, E).astype(np.float64)).reshape(n, T, E)
    return {**whole, "image": normalise(whole["image"].astype(np.float64)), "text": text}


def ranks(
    image: Float[np.ndarray, "n *M E"], text: Float[np.ndarray, "m E"], owner: Int[np.ndarray, " m"], block: int = BLOCK
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Ranks, from 0, the best of each image's texts among all texts, and each text's image among all images.

    A candidate comes before the right one if it is more similar, or as similar and earlier in the set: a model whose
    embeddings are all the same is at chance. Similarities are made block by block, so that a set of any size fits into
    memory. An image without a text has rank m.
    """
    image, text = image.astype(np.float64), text.astype(np.float64)
    own = nearest.own_similarities(image[owner], text)
    best = np.full(len(image), -np.inf)
    np.maximum.at(best, owner, own)
    first = np.full(len(image), len(text))  # the earliest text of each image that is as good as its best
    good = own >= best[owner] - TIE
    np.minimum.at(first, owner[good], np.flatnonzero(good))
    to_text, to_image = np.zeros(len(image), np.int64), np.zeros(len(text), np.int64)
    for i in range(0, len(image), block):
        for j in range(0, len(text), block):
            rows, columns = np.arange(len(image))[i : i + block, None], np.arange(len(text))[None, j : j + block]
            similarity = nearest.similarities(image[i : i + block], text[j : j + block])
            similarity[rows == owner[columns]] = -np.inf  # an image's own texts never come before its best
            to_text[i : i + block] += before(similarity, best[rows], columns < first[rows]).sum(axis=1)
            to_image[j : j + block] += before(similarity, own[columns], rows < owner[columns]).sum(axis=0)
    to_text[~np.isfinite(best)] = len(text)
    return to_text, to_image
