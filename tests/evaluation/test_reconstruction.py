import numpy as np
import pytest
from PIL import Image
from toy import passes

from vitvlm import evaluation
from vitvlm.nn.patches import patchify

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def scene(n=10, height=8, width=12):
    """Smooth colour images as the model sees them, normalised."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([np.stack([x / width, y / height, np.full_like(x, i / n, float)], -1) for i in range(n)])
    return ((pixels - MEAN) / STD).astype(np.float32)


def perfect(norm_pix):
    """A prediction function that reconstructs exactly; it hides every second patch."""

    def predict(name, variables, batch):
        target = np.asarray(patchify(batch["image"], (4, 6)))
        if norm_pix:
            spread = np.sqrt(target.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
            target = (target - target.mean(axis=-1, keepdims=True)) / spread
        mask = np.tile(np.arange(target.shape[1]) % 2, (len(target), 1))
        return {"loss": batch["index"] / 10.0, "mask": mask, "reconstruction": target}

    return predict


def build(images, norm_pix, batch_size=4, channels=3, **fields):
    return evaluation.build(
        "reconstruction",
        fields,
        batches=passes(images, batch_size=batch_size),
        patch_size=(4, 6),
        norm_pix=norm_pix,
        mean=MEAN[:channels],
        std=STD[:channels],
    )


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_looks_like_the_original(norm_pix, tmp_path):
    images = scene()
    evaluator = build(images, norm_pix)
    arrays = perfect(norm_pix)("reconstruct", {}, next(iter(passes(images)())))
    shown = evaluator._rows(2, images[2], {name: array[2] for name, array in arrays.items()})
    np.testing.assert_allclose(shown.pasted, np.clip(images[2] * STD + MEAN, 0, 1), atol=2e-3)
    np.testing.assert_allclose(shown.original, shown.pasted, atol=2e-3)
    assert not shown.hidden[:, :6].any() and shown.hidden[:4, 6:].all()


def test_visible_patches_are_the_original_and_hidden_ones_the_prediction():
    images = scene()
    evaluator = build(images, False)
    arrays = {name: array[0] for name, array in perfect(False)("reconstruct", {}, next(iter(passes(images)()))).items()}
    arrays["reconstruction"] = np.full_like(arrays["reconstruction"], 0.0)
    shown = evaluator._rows(0, images[0], arrays)
    np.testing.assert_allclose(shown.pasted[:, :6], shown.original[:, :6], atol=1e-6)
    np.testing.assert_allclose(shown.pasted[:, 6:], np.broadcast_to(MEAN, (8, 6, 3)), atol=1e-6)


def test_loss_and_pictures_do_not_depend_on_the_batch_size(tmp_path):
    images = scene(23)
    results = [
        build(images, True, size, max_images=5).run(perfect(True), {}, tmp_path / str(size)) for size in (4, 7, 64)
    ]
    assert results[0].metrics == results[1].metrics == results[2].metrics
    assert results[0].metrics["loss"] == pytest.approx(np.arange(23).mean() / 10)
    assert results[0].metrics["masked_share"] == 0.5
    sheets = [np.asarray(Image.open(result.pictures[0])) for result in results]
    np.testing.assert_array_equal(sheets[0], sheets[1])
    np.testing.assert_array_equal(sheets[0], sheets[2])


@pytest.mark.parametrize(("count", "channels"), [(1, 3), (5, 3), (8, 1)])
def test_sheet_holds_every_triple(count, channels, tmp_path):
    images = scene(count)[..., :channels]
    (path,) = build(images, False, channels=channels).run(perfect(False), {}, tmp_path).pictures
    sheet = np.asarray(Image.open(path))
    assert path.name == "reconstruction.png" and sheet.shape[2] == 3
    coloured = (np.abs(sheet.astype(int) - 255).sum(axis=-1) > 0).mean()
    assert coloured > 0.4


def test_no_pictures_when_none_are_wanted(tmp_path):
    result = build(scene(), True, max_images=0).run(perfect(True), {}, tmp_path)
    assert result.pictures == () and not list(tmp_path.glob("*.png"))
