"""Zero-shot classification and retrieval give CLIP_benchmark's own figures for the same embeddings (recorded)."""

import pathlib

import numpy as np
import pytest

from vitvlm import evaluation

RECORDED = np.load(pathlib.Path(__file__).parent / "recorded" / "clip_benchmark.npz")
CLASSES, TEMPLATES = 7, 3


def batches(size, **arrays):
    """The set in batches of one size, the last filled up."""
    n = len(arrays["image"])
    arrays["index"], arrays["example_mask"] = np.arange(n), np.ones(n, bool)
    filled = {name: np.pad(x, ((0, -n % size), *((0, 0),) * (x.ndim - 1))) for name, x in arrays.items()}
    starts = range(0, n, size)
    return lambda: ({name: x[start : start + size] for name, x in filled.items()} for start in starts)


@pytest.mark.parametrize("size", [8, 61])
def test_zero_shot(size, tmp_path):
    def predict(name, variables, batch):
        return {
            "embedding": batch["image"] if name == "image_embedding" else RECORDED["prompt"][batch["text_tokens"][:, 0]]
        }

    def tokenize(texts):
        rows = [int(name) * TEMPLATES + int(template) for name, template in (text.split() for text in texts)]
        return np.array(rows)[:, None], np.ones((len(rows), 1), np.int32)

    evaluator = evaluation.build(
        "zero_shot",
        {"templates": tuple(f"{{}} {t}" for t in range(TEMPLATES))},
        batches=batches(size, image=RECORDED["image"], label=RECORDED["label"]),
        tokenize=tokenize,
        label_names=tuple(map(str, range(CLASSES))),
    )
    metrics = evaluator.run(predict, {}, tmp_path).metrics
    assert metrics["top1"] == pytest.approx(float(RECORDED["acc1"]), abs=1e-9)
    assert metrics["top5"] == pytest.approx(float(RECORDED["acc5"]), abs=1e-9)
    assert metrics["mean_class_accuracy"] == pytest.approx(float(RECORDED["mean_per_class_recall"]), abs=1e-9)
    assert 0.3 < metrics["top1"] < 0.9  # neither trivial


@pytest.mark.parametrize("size", [8, 61])
def test_retrieval(size, tmp_path):
    owner, caption = RECORDED["owner"], RECORDED["caption"]
    most = np.bincount(owner).max()
    place = np.concatenate([np.arange(count) for count in np.bincount(owner)])
    text, mask = np.zeros((61, most, caption.shape[1]), np.float32), np.zeros((61, most, caption.shape[1]), np.int32)
    text[owner, place], mask[owner, place] = caption, 1

    def predict(name, variables, batch):
        return {"embedding": batch[{"image_embedding": "image", "text_embedding": "text_tokens"}[name]]}

    evaluator = evaluation.build(
        "retrieval", {}, batches=batches(size, image=RECORDED["image"], text_tokens=text, text_mask=mask)
    )
    metrics = evaluator.run(predict, {}, tmp_path).metrics
    for k in (1, 5, 10):
        # Named there after what is found: text_retrieval is image to text.
        assert metrics[f"image_to_text_r{k}"] == pytest.approx(float(RECORDED[f"text_retrieval_recall@{k}"]), abs=1e-6)
        assert metrics[f"text_to_image_r{k}"] == pytest.approx(float(RECORDED[f"image_retrieval_recall@{k}"]), abs=1e-6)
    assert metrics["texts"] == len(caption)
