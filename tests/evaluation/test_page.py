"""The page of an evaluation in a browser: what is chosen, filtered, outlined, and stated."""

import jax
import numpy as np
import pytest

from vitvlm import evaluation
from vitvlm.core.config import ConfigError

CLASSES = ("red", "green <b>", "blue", "grey")
COLOURS = np.array([[220, 30, 30], [30, 180, 30], [30, 30, 220], [128, 128, 128]], np.uint8)


def picture_of(labels):
    return lambda index: np.broadcast_to(COLOURS[labels[index]], (20, 30, 3))


def predict(name, variables, batch):
    """Embeddings that are the inputs themselves."""
    return {"embedding": np.asarray(batch["image" if name == "image_embedding" else "text_tokens"], np.float32)}


def zero_shot(folder, per_class=6, classes=CLASSES, shown=300):
    """Class c is axis c of the embeddings; every third image of class 0 is taken for class 1."""
    labels = np.repeat(np.arange(len(classes)), per_class)
    taken = np.where((labels == 0) & (np.arange(len(labels)) % 3 == 0), 1, labels)
    rng = np.random.default_rng(0)
    images = np.eye(len(classes))[taken] + 0.05 * rng.uniform(size=(len(labels), len(classes)))
    batch = {"image": images, "label": labels, "index": np.arange(len(labels)), "example_mask": np.ones(len(labels))}
    evaluator = evaluation.build(
        "zero_shot",
        {"templates": "name", "max_images": shown},
        batches=lambda: [batch],
        tokenize=lambda texts: (np.eye(len(classes))[[classes.index(text) for text in texts]], np.ones(len(texts))),
        label_names=classes,
        picture=picture_of(labels % len(COLOURS)),
        example_id=lambda index: f"image-{index}",
    )
    return evaluator.run(predict, {}, folder).page


def retrieval(folder, n=40, shown=300, wrong=(), name="text {}"):
    """Two texts an image; those of the images in `wrong` are nearest to the image after it."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(n, 12))
    own = np.where(np.isin(np.arange(n), wrong), (np.arange(n) + 1) % n, np.arange(n))
    text = np.repeat(image[own][:, None], 2, axis=1) + 0.01 * rng.normal(size=(n, 2, 12))
    batch = {
        "image": image,
        "text_tokens": text,
        "text_mask": np.ones(text.shape, int),
        "index": np.arange(n) * 10,
        "example_mask": np.ones(n),
    }
    known = {row.tobytes(): f"{name.format(i // 2)} {'ab'[i % 2]}" for i, row in enumerate(text.reshape(-1, 12))}
    evaluator = evaluation.build(
        "retrieval",
        {"max_images": shown},
        batches=lambda: [batch],
        picture=lambda index: np.full((9, 9, 1), index % 255, np.uint8),
        detokenize=lambda ids, mask: [known[row.tobytes()] for row in ids],
        example_id=lambda index: f"image-{index}",
    )
    return evaluator.run(predict, {}, folder).page


def classification(folder, labels, prediction, names=CLASSES, classes=4, **fields):
    batch = {"logits": np.eye(classes)[prediction], "label": labels, "index": np.arange(len(labels)) + 100}
    evaluator = evaluation.build(
        "classification",
        fields,
        batches=lambda: [batch | {"example_mask": np.ones(len(labels))}],
        label_names=names,
        picture=lambda index: picture_of(labels % 4)(index - 100),
        example_id=lambda index: f"image-{index}",
    )
    return evaluator.run(lambda name, variables, batch: {name: batch[name]}, {}, folder).page


def test_choosing_a_class_shows_its_nearest_images(open_page, tmp_path):
    page = open_page(zero_shot(tmp_path))
    assert "24 images, 4 classes" in page.locator("h1").inner_text()
    assert "All 24 images and 4 texts" in page.locator(".note.above").first.inner_text()
    page.locator("#texts button", has_text="blue").click()
    assert page.locator("#result h3").inner_text() == "“blue”"
    figures = page.locator("#result .near figure")
    assert figures.count() == 10 and page.locator("#result figure.right").count() == 6
    scores = [float(text.split()[0]) for text in page.locator("#result figcaption b").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.9
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/webp'))")


def test_choosing_an_image_shows_its_nearest_texts(open_page, tmp_path):
    page = open_page(zero_shot(tmp_path))
    page.locator("#by-image").click()
    assert page.locator("#images button[aria-pressed=true]").count() == 0, "a text is chosen, no image"
    page.locator("#images button").first.click()  # of class red, taken for green
    rows = page.locator("#result tbody tr")
    assert rows.count() == 4 and "“green <b>”" in rows.first.inner_text()
    assert "“red” ✓" in page.locator("#result tr.right").inner_text()
    rows.first.locator("button").click()
    assert page.locator("#result h3").inner_text() == "“green <b>”"
    assert page.locator("#by-text").get_attribute("aria-pressed") == "true"


def test_confusions_and_the_worst_class(open_page, tmp_path):
    page = open_page(zero_shot(tmp_path))
    assert page.locator("#map rect.wrong").count() == 1 and page.locator("#map rect.right").count() == 4
    assert "red taken for green <b>: 2, 33.3 %" in page.locator("#map").text_content()
    assert page.locator("#pairs tbody td").all_inner_texts()[:4] == ["red", "green <b>", "2", "33.3 %"]
    assert page.locator("#pairs .some img").count() == 2
    article = page.locator("article")
    assert article.count() == 1 and "66.7 % of 6 right" in article.inner_text()
    assert article.locator("figcaption").all_inner_texts() == ["green <b>", "green <b>"]
    article.locator("button").last.click()
    assert page.locator("#result h3").inner_text() == "image-3"


@pytest.mark.parametrize("classes", [40, 100, 101])
def test_many_classes(open_page, tmp_path, classes):
    names = tuple(f"class number {i}" for i in range(classes))
    page = open_page(zero_shot(tmp_path, per_class=3, classes=names, shown=60))
    assert page.locator("#map").count() == (classes <= 100)
    assert page.locator("#pairs tbody tr").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert "at most 60" in page.locator(".note.above").first.inner_text()
    assert 0 < page.locator("#texts button").count() < classes


def test_the_filter_and_the_hardest(open_page, tmp_path):
    page = open_page(retrieval(tmp_path, wrong=(7,)))
    assert page.locator("#texts button").count() == 80
    page.locator("#filter").fill("7 B ext")
    shown = [text.split("\n")[0] for text in page.locator("#texts button").all_inner_texts()]
    assert shown == ["“text 7 b”", "“text 17 b”", "“text 27 b”", "“text 37 b”"]
    assert "4 of 80 texts" in page.locator("#count").inner_text()
    page.locator("#by-image").click()
    page.locator("#filter").fill("image-70")
    assert page.locator("#images button").count() == 1
    page.locator("#filter").fill("")
    page.locator("#by-text").click()
    page.locator("#hardest").check()
    assert "text 7" in page.locator("#texts button").first.inner_text()
    page.locator("#filter").fill("nothing of the kind")
    assert page.locator("#texts button").count() == 0


def test_the_right_image_is_outlined_or_comes_with_its_rank(open_page, tmp_path):
    page = open_page(retrieval(tmp_path, wrong=(7,)))
    page.locator("#texts button", has_text="text 5 a").click()
    assert "of 40 images, the nearest is right" in page.locator(".verdict").inner_text()
    assert page.locator("#result figure.right").count() == 1
    page.locator("#texts button", has_text="text 7 a").click()
    rank = int(page.locator(".verdict").inner_text().split("rank ")[1].split()[0])
    ranks = np.load(tmp_path / "examples.npz")["text_rank"]
    assert rank == ranks[14] + 1 > 1
    assert page.locator("#result figure.right").count() == 1
    outlined = page.locator("#result figure.right button").get_attribute("title")
    assert outlined == "image-70"
    if rank > 10:
        assert f"rank {rank}" in page.locator("#result figure.right").inner_text()
    page.locator("#result figure.right button").click()
    image_rank = np.load(tmp_path / "examples.npz")["image_rank"][7] + 1
    assert image_rank > 1
    assert f"its first right text is at rank {image_rank} of 80" in page.locator(".verdict").inner_text()
    page.locator("#hardest").check()
    hardest = page.locator("#images button").first.get_attribute("title")
    assert f"text {np.load(tmp_path / 'examples.npz')['image_rank'].argmax()} a" in hardest


def test_a_set_too_large_for_the_page_is_said_to_be_and_its_address_leads_to_a_text(open_page, tmp_path):
    path = retrieval(tmp_path, n=300, shown=40)
    page = open_page(path)
    said = page.locator(".note.above").first.inner_text()
    assert "300 images and 600 texts" in said and "over the whole set" in said
    page.locator("#by-image").click()
    assert page.locator("#images button").count() == 40
    page.locator("#by-text").click()
    page.locator("#texts button").nth(1).click()
    chosen, address = page.locator("#result h3").inner_text(), page.url
    page.reload()
    assert "#text-" in address and page.locator("#result h3").inner_text() == chosen
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window_in_light_and_dark(open_page, tmp_path, width):
    path = zero_shot(tmp_path)
    for scheme in ("light", "dark"):
        page = open_page(path, width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        white = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert white == (scheme == "light")


def test_classification_has_no_search(open_page, tmp_path):
    labels = np.repeat(np.arange(4), 5)
    prediction = labels.copy()
    prediction[[3, 4, 5]] = 1, 1, 2  # two red taken for green, one green for blue
    page = open_page(classification(tmp_path, labels, prediction, names=(*CLASSES[:2], "2", "3")))
    assert "Classification: 20 images, 4 classes" in page.locator("h1").inner_text()
    assert page.locator("#filter").count() == 0
    rows = page.locator("#pairs tbody tr")
    cells = [row.locator("td").all_inner_texts()[:4] for row in rows.all()]
    assert cells == [["red", "green <b>", "2", "40.0 %"], ["green <b>", "2", "1", "20.0 %"]]
    assert rows.first.locator("img").nth(1).get_attribute("title") == "image-104"
    assert page.locator("article h3").all_inner_texts() == ["red", "green <b>"]
    assert page.locator("img").count() == 6
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/webp') && i.naturalWidth > 0)")


def test_no_more_pictures_than_wanted(open_page, tmp_path):
    labels = np.repeat(np.arange(4), 50)
    page = open_page(classification(tmp_path, labels, (labels + 1) % 4, max_images=3))
    assert "At most 3 pictures are on this page: 17 that belong here" in page.locator(".note").first.inner_text()
    assert len(page.evaluate("Object.keys(data.images)")) == 3
    assert page.locator("article").count() == 4 and page.locator("#map rect.right").count() == 0


def test_no_mistake_is_no_picture(open_page, tmp_path):
    page = open_page(classification(tmp_path, np.arange(4), np.arange(4)))
    assert page.locator("#map rect.right").count() == 4
    assert page.locator("article, #pairs, img").count() == 0


HOSTILE = (
    """</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> {} "so" & 'so' {{{{7*7}}}}"""
)


def test_texts_are_text(open_page, tmp_path):
    page = open_page(retrieval(tmp_path / "captions", name=HOSTILE))
    page.locator("#filter").fill("onerror= 31 b")
    page.locator("#texts button").click()
    assert page.locator("#result h3").inner_text() == f"“{HOSTILE.format(31)} b”"
    assert HOSTILE.format(31) in page.locator("#result figure.right figcaption").inner_text()
    page.locator("#result figure.right button").click()
    assert HOSTILE.format(31) in page.locator("#result tr.right").first.inner_text()
    assert page.evaluate("window.hacked") is None
    names = (HOSTILE, *CLASSES[1:])
    page = open_page(zero_shot(tmp_path / "classes", classes=names))
    assert page.locator("article h3").inner_text() == HOSTILE
    assert page.locator("#map title").first.text_content() == HOSTILE
    assert page.locator("#pairs td").first.inner_text() == HOSTILE
    assert page.evaluate("window.hacked") is None


def test_the_first_process_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert zero_shot(tmp_path) is None and not (tmp_path / "page.html").exists()


def test_no_page_without_pictures_or_where_none_is_wanted(tmp_path):
    assert zero_shot(tmp_path / "none", shown=0) is None
    assert not (tmp_path / "none" / "page.html").exists() and (tmp_path / "none" / "classes.csv").exists()
    for shown in (5, -1):
        with pytest.raises(ConfigError, match=f"max_images: {shown} images.*give at least as many, or 0"):
            zero_shot(tmp_path, shown=shown)
