"""scripts/predict.py and `vitvlm.load(path).predict`: the same classes, resumable files, broken images, the page."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

import vitvlm
from tests.data import pictures
from tests.jobs import made_workdir
from tests.jobs.made_workdir import OPS
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.jobs.predict import calibrate, gallery
from vitvlm.jobs.predict.job import Job, run
from vitvlm.jobs.predict.records import Records
from vitvlm.pretrained.predicting import Prediction, Request

HOSTILE = "<img src=x onerror=alert(1)> & 'quotes' \"</script>.png"
NAMES = ("cat", "<b>dog</b>", "emu")
BATCH = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    photos = pictures.folder(root / "photos", {"a": 5, "b": 4}, size=(20, 24))
    (photos / "a" / "000.png").rename(photos / "a" / HOSTILE.replace("/", "_"))
    (photos / "b" / "broken.png").write_bytes(b"no image")
    labelled = pictures.folder(root / "labelled", dict.fromkeys(NAMES[::2] + ("dog",), 10), size=(20, 24))
    made_workdir.write(root / "work", labelled, names=("cat", "dog", "emu"))
    return root


@pytest.fixture(scope="module")
def loaded(place):
    return vitvlm.load(place / "work", step="best:raw")


def reference(loaded, path):
    """Probabilities of an image, by the parts that predict is made of."""
    example = operations.parse(OPS)({"image": path.read_bytes(), "id": ""}, np.random.default_rng(0))
    logits = np.asarray(loaded.model.apply(loaded.variables, example["image"][None]).logits[0], np.float64)
    return np.exp(logits) / np.exp(logits).sum()


def test_importing_vitvlm_imports_nothing_heavy():
    code = "import sys, vitvlm; assert not {'jax', 'numpy', 'flax'} & set(sys.modules); assert 'load' in dir(vitvlm)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="laod"):
        _ = vitvlm.laod


def test_predictions_are_those_of_the_model(loaded, place):
    found = loaded.predict(place / "photos", top=2, features=True, batch_size=BATCH)
    assert len(found) == 10 and list(found.errors) == [str(place / "photos" / "b" / "broken.png")]
    assert found.features.shape == (10, 16) and np.isnan(found.features[-1]).all()
    for one in (found[1], found[6]):
        expected = reference(loaded, place.__class__(one.image))
        best = np.argsort(-expected)[:2]
        assert [name for name, _ in one.classes] == [loaded.class_names[i] for i in best]
        np.testing.assert_allclose([share for _, share in one.classes], expected[best], rtol=1e-4)
    assert found.names[-1] is None and found.names[1] == found[1].classes[0][0]
    pixels = [pictures.pattern(20, 24, seed=i) for i in (1, 2)]
    in_memory = loaded.predict(pixels, top=2, batch_size=BATCH)
    for one, other in zip(in_memory, found[:2]):
        np.testing.assert_allclose([s for _, s in one.classes], [s for _, s in other.classes], rtol=1e-5)
    shown = found._repr_html_()
    assert "<img src=x" not in shown and "data:image/webp" in shown and "1 of them cannot be read" in repr(found)


def test_what_cannot_be_asked_for(loaded, place):
    for request, error in (
        ({"tpo": 3}, "top"),
        ({"top": 0}, "1 or more"),
        ({"temperature": 0}, "above 0"),
        ({"classes": ("a", "b")}, "compares no words"),
    ):
        with pytest.raises(ConfigError, match=error):
            loaded.predict(place / "photos", **request)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_that_was_cut_off_is_gone_on_with(loaded, place, tmp_path, kind):
    out = tmp_path / f"p.{kind}"
    job = Job(
        str(place / "work"),
        [str(place / "photos")],
        Request(top=2, features=True, batch_size=BATCH),
        {"step": "best:raw"},
        out=str(out),
    )
    told = Console(quiet=True)
    first = run(job, told)
    whole, features = out.read_bytes(), np.load(f"{out}.features.npy")
    assert features.shape == (10, 16)
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:6]) + lines[6][:9])
    again = run(job, told)
    assert [one.image for one in again] == [one.image for one in first]
    np.testing.assert_array_equal(np.load(f"{out}.features.npy"), features)
    assert out.read_bytes() == whole
    if kind == "csv":
        head, *rows = csv.reader(out.read_text().splitlines())
        assert head == ["image", "class_1", "probability_1", "class_2", "probability_2", "error"]
        assert rows[-1][0].endswith("broken.png") and "not an image" in rows[-1][-1]
    else:
        last = json.loads(out.read_text().splitlines()[-1])
        assert last["image"].endswith("broken.png") and "not an image" in last["error"]
    other = Job(job.weights, job.images, Request(top=2, temperature=2.0), job.fields, out=str(out), temperature=2.0)
    with pytest.raises(ConfigError, match="begun otherwise"):
        run(other, told)


def test_embeddings_that_begin_with_broken_images(tmp_path):
    records = Records(str(tmp_path / "p.jsonl"), {}, 1, True)
    records.add([Prediction("a", error="broken")])
    assert np.load(records.features_path).shape == (1, 0)
    records.add([Prediction("b", features=np.ones(3, np.float32)), Prediction("c", error="broken")])
    for number in range(300):
        records.add([Prediction(str(number), features=np.full(3, number, np.float32))])
    found = np.load(records.features_path)
    assert found.shape == (303, 3) and np.isnan(found[[0, 2]]).all()
    np.testing.assert_array_equal(found[3:, 0], np.arange(300))


def test_files_that_are_not_ours(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a file of predictions"):
        Records(str(tmp_path / "p.csv"), {}, 1, False)
    with pytest.raises(ConfigError, match=r"\.csv or \.jsonl"):
        Records(str(tmp_path / "p.txt"), {}, 1, False)


def test_the_temperature_is_fitted_to_the_held_out_split(loaded, place):
    own, said = calibrate.fit(loaded, request=Request(batch_size=BATCH))
    given, _ = calibrate.fit(loaded, f"folder:{place / 'labelled'}", Request(batch_size=BATCH))
    assert own == given and own.n == 6 and "folder:" in said
    image = sorted((place / "photos" / "b").glob("0*.png"))[0]
    one = loaded.predict(image, temperature=own.temperature, top=3, batch_size=BATCH)[0]
    expected = reference(loaded, image) ** (1 / own.temperature)
    np.testing.assert_allclose([s for _, s in one.classes], np.sort(expected / expected.sum())[::-1], rtol=1e-3)


def test_a_folder_whose_images_are_all_broken(loaded, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    found = loaded.predict(tmp_path)
    assert [one.error[:22] for one in found] == ["1 bytes that are not a"] * 2


@pytest.fixture(scope="module")
def page_file(loaded, place):
    import dataclasses

    hostile = dataclasses.replace(loaded, class_names=NAMES)
    found = hostile.predict(place / "photos", top=3, batch_size=BATCH)
    path = place / "page" / "p.html"
    gallery.write(path, found, found.source, "10 images, as <work> sees them", "protocol & <i>", most=8)
    return path


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_shows_and_filters(open_page, page_file, width):
    opened = open_page(page_file, width)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.locator("figure").count() == 8 and opened.locator("figure img").count() == 8
    assert "8 of the 9 images" in opened.locator("p.note").first.inner_text()
    shares = [float(text.split()[0]) for text in opened.locator("figure li:first-child b").all_inner_texts()]
    assert shares == sorted(shares)
    opened.get_by_role("button", name="most sure first").click()
    assert opened.locator("figure li:first-child b").first.inner_text().startswith(f"{max(shares):.1f}")
    opened.locator("#filter").fill("b/00")
    assert 0 < opened.locator("figure").count() < 8
    opened.locator("#filter").fill("")
    name = opened.locator("figure li:first-child span").first.inner_text()
    opened.locator("#class").select_option(value=name)
    assert set(opened.locator("figure li:first-child span").all_inner_texts()) == {name}
    opened.locator("#class").select_option(value="")
    counted = [int(text) for text in opened.locator("#bars .count").all_inner_texts()]
    assert sum(counted) == 9
    opened.locator("#bars button").nth(int(np.argmax(counted))).click()
    assert 0 < opened.locator("figure").count() <= max(counted)
    assert "broken.png" in opened.locator("td").first.inner_text()


def test_hostile_names_stay_text(open_page, page_file):
    opened = open_page(page_file)
    assert opened.locator("figure b b").count() == 0 and opened.locator("img[src=x]").count() == 0
    assert any("onerror" in text for text in opened.locator("figure h3").all_inner_texts())
    assert opened.locator("h1").inner_text() == "10 images, as <work> sees them"


def test_probabilities_of_several_classes_at_a_time():
    from vitvlm.pretrained.predicting import probabilities

    logits = np.array([[800.0, -3.0, -900.0]])
    np.testing.assert_allclose(probabilities(logits, 2.0, True), [[1, 1 / (1 + np.exp(1.5)), 0]], atol=1e-12)
    np.testing.assert_allclose(probabilities(logits[:, :2], 1.0), jax.nn.softmax(logits[:, :2]), atol=1e-12)
