"""Grounding of a model of which it is known what it looks at: figures, what is swapped with what, and its page."""

import csv
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import bootstrap, other_images, statistics
from vitvlm.evaluation.grounding import Grounded, uses_image, verdict
from vitvlm.tasks import looking

COLOURS = ("red", "green", "blue")
STOP = 3
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror=\"window.hacked=1\"> {{7*7}} & 'so'"


class Data:
    """Images of one colour each, asked for it, or for a number that no image shows; every third asks the latter."""

    def __init__(self, n=60, several=False, hostile=False, same=False):
        rng = np.random.default_rng(0)
        self.n, self.several, self.hostile = n, several, hostile
        self.colour = np.zeros(n, int) if same else rng.integers(3, size=n)
        self.kind = np.where(np.arange(n) % 3 == 2, "number", "colour")
        self.images = np.eye(3, dtype=np.float32)[self.colour][:, None, None] * np.ones((n, 4, 4, 1), np.float32)
        if several:
            self.images = np.stack([self.images, np.zeros_like(self.images)], axis=1)

    def truth(self, i):
        return COLOURS[self.colour[i]] if self.kind[i] == "colour" else COLOURS[0]

    def texts(self, i, name):
        question = f"what {self.kind[i]}, {i}? {HOSTILE if self.hostile else ''}"
        return {"answer": self.truth(i), "type": self.kind[i], "question": question}.get(name)

    def batches(self):
        for start in range(0, self.n, 16):
            index = np.arange(start, start + 16)
            real, index = index < self.n, np.minimum(index, self.n - 1)
            batch = {
                "index": index,
                "example_mask": real.astype(np.float32),
                "text_tokens": np.zeros((16, 2), np.int32),
            }
            if self.several:
                mask = np.stack([np.ones(16, np.int32), np.zeros(16, np.int32)], axis=1)
                yield batch | {"images": self.images[index], "image_mask": mask}
            else:
                yield batch | {"image": self.images[index]}

    def example(self, i):
        if self.several:
            return {"images": self.images[i], "image_mask": np.array([1, 0])}
        return {"image": self.images[i]}


def sees(data):
    """Answers by the colour of the image, "green" without; a question for a number always right."""

    def predict(name, variables, batch, **how):
        if name == "image_attention":
            ones = np.ones(len(batch["index"]))
            return {"mass": 0.4 * np.ones((len(ones), 2, 3)), "share": 0.8 * np.ones((len(ones), 2))}
        image = batch["images"][:, 0] if "images" in batch else batch["image"]
        said = np.where(batch["image_mask"][:, 0] > 0, image.mean(axis=(1, 2)).argmax(axis=1), 1)
        said = np.where(data.kind[batch["index"]] == "number", 0, said)
        return {"ids": np.stack([said, np.full(len(said), STOP)], axis=1)}

    return predict


def is_blind(name, variables, batch, **how):
    return {"ids": np.stack([batch["index"] % 3, np.full(len(batch["index"]), STOP)], axis=1)}


def grounded(data, fields=None, **how):
    evaluator = evaluation.build(
        "questions",
        {"types": "type", "max_new_tokens": 2, **(fields or {})},
        batches=data.batches,
        detokenize=lambda rows: [" ".join(COLOURS[i] for i in row) for row in rows],
        texts=data.texts,
        stop_ids=(STOP,),
        example_id=lambda i: f"record-{i}",
    )
    types = {"types": lambda i: str(data.kind[i])}
    return Grounded(evaluator, images=data.example, **types | how)


def run(data, predict, folder, variables=None, **how):
    evaluator = grounded(data, **how)
    result = evaluator.run(predict, variables or {}, folder)
    given = {name for name, _, _ in evaluation.with_intervals(result.metrics)}
    assert given == set(evaluator.metrics)
    return result


@pytest.mark.parametrize("several", [False, True])
def test_a_model_that_sees_loses_without_its_image(tmp_path, several):
    data = Data(several=several)
    result = run(data, sees(data), tmp_path, attention="image_attention")
    metrics, asked = result.metrics, data.kind == "colour"
    right_blind = np.where(asked, data.colour == 1, True)
    assert metrics["accuracy"] == 1 and metrics["grounding_uses_image"] == 1
    assert metrics["grounding_blind"] == pytest.approx(right_blind.mean())
    assert metrics["grounding_blind_drop"] == pytest.approx(1 - right_blind.mean())
    assert (
        0 < metrics["grounding_blind_drop_low"] < metrics["grounding_blind_drop"] < metrics["grounding_blind_drop_high"]
    )
    assert metrics["grounding_blind_changed"] == pytest.approx(1 - right_blind.mean())
    assert metrics["grounding_swapped_p"] < 0.001 and metrics["grounding_swapped_changed"] > 0.3
    assert metrics["grounding_mean"] < 1 and metrics["grounding_noise"] < 1
    assert metrics["grounding_attention"] == pytest.approx(0.5)
    assert "; the image is used: another's image costs" in result.protocol and "n=60" in result.protocol
    assert "image tokens get 0.50 times their share" in result.protocol
    with (tmp_path / "grounding" / "drops.csv").open() as file:
        rows = {(row["condition"], row["type"]): row for row in csv.DictReader(file)}
    assert float(rows["swapped", "number"]["drop"]) == 0 and float(rows["swapped", "colour"]["drop"]) > 0.3
    assert rows["blind", "all"]["n"] == "60" and rows["blind", "colour"]["n"] == "40"
    assert len((tmp_path / "grounding" / "attention.csv").read_text().splitlines()) == 7
    with np.load(tmp_path / "grounding" / "blind" / "examples.npz") as saved:
        np.testing.assert_array_equal(saved["score"], right_blind)


def test_a_model_that_does_not_see_is_told_so(tmp_path):
    result = run(Data(), is_blind, tmp_path)
    assert result.metrics["grounding_uses_image"] == 0 and result.metrics["grounding_swapped_changed"] == 0
    assert result.metrics["grounding_swapped_p"] == 1 and "NO EVIDENCE that the image is used" in result.protocol


def test_conditions_can_be_chosen(tmp_path):
    data = Data()
    result = run(data, sees(data), tmp_path, conditions=("blind",))
    assert "grounding_blind" in result.metrics and "grounding_swapped" not in result.metrics
    with pytest.raises(ConfigError, match=r"grounding: 'swaped'; did you mean .swapped"):
        grounded(data, conditions=("swaped",))


def test_where_all_images_are_the_same(tmp_path):
    data = Data(same=True)
    result = grounded(data).run(sees(data), {}, tmp_path)
    assert "; 60 examples had no other image to be swapped with" in result.protocol
    assert "grounding_swapped" not in result.metrics and "grounding_blind" in result.metrics


def test_only_answers_of_the_same_type_exchange_images():
    data = Data()
    known = other_images.survey(data.batches, lambda i: str(data.kind[i]))
    assert len(known.partner) == 60 and len(set(known.partner.values())) == 60
    for a, b in known.partner.items():
        assert data.kind[a] == data.kind[b] and data.colour[a] != data.colour[b]
    np.testing.assert_allclose(known.mean, data.images.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(known.spread, data.images.astype(float).std(axis=(0, 1, 2)), atol=1e-6)
    (batch,) = list(other_images.changed(lambda: [next(data.batches())], "swapped", known, data.example)())
    for row, index in enumerate(batch["index"]):
        np.testing.assert_array_equal(batch["image"][row], data.images[known.partner[int(index)]])
    original = next(data.batches())["image"]
    (batch,) = list(other_images.changed(lambda: [next(data.batches())], None, known, data.example)())
    np.testing.assert_array_equal(batch["image"], original)
    assert batch["image_mask"].shape == (16, 1) and batch["image_mask"].all()


def test_only_images_that_take_the_same_places_are_exchanged():
    """Tiles in another order of tokens, another number of images, or patches in other places cannot stand in."""
    index = np.array([[0, 1, -1, -1], [-1, 0, 1, -1], [1, 0, -1, -1], [0, 1, -1, -1]])
    there = np.array([[1, 1], [1, 1], [1, 1], [1, 0]])
    found = other_images.layouts({"image_index": index}, there)
    assert found[0] == found[1] and len(set(found.tolist())) == 3
    grids = {"image_index": index[[0, 0]], "images_patch_grid": np.array([[[1, 2]], [[2, 1]]])}
    assert len(set(other_images.layouts(grids, there[:2]).tolist())) == 2


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), max_size=30))
def test_nobody_gets_an_image_like_their_own(digests):
    digests = np.array(digests, np.int64)
    partner = other_images.deranged(digests, np.random.default_rng(0))
    there = partner >= 0
    assert np.all(digests[partner[there]] != digests[there]) and len(set(partner[there])) == there.sum()
    most = np.unique(digests, return_counts=True)[1].max() if len(digests) else 0
    assert there.sum() == (len(digests) if 2 * most <= len(digests) and len(digests) > 1 else there.sum())
    if len(set(digests.tolist())) > 1:
        assert there.sum() >= 2 * (len(digests) - most) if 2 * most > len(digests) else there.all()


def test_the_sign_test_is_mcnemars_and_fishers():
    rng = np.random.default_rng(1)
    first, second = (rng.random((2, 40)) < [[0.8], [0.5]]).astype(float)
    wins, losses = int((first > second).sum()), int((first < second).sum())
    from math import comb

    n = wins + losses
    exact = min(1, 2 * sum(comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n)
    assert bootstrap.sign_test(first, second) == pytest.approx(exact, abs=0.01)
    values = rng.normal(0.3, 1, 9)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1).T
    exact = np.mean(abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert bootstrap.sign_test(values, np.zeros(9)) == pytest.approx(exact, abs=0.02)
    assert bootstrap.sign_test(np.ones(5), np.ones(5)) == 1
    with pytest.raises(ValueError, match="paired values of 2 and 3"):
        bootstrap.sign_test(np.ones(2), np.ones(3))


def test_the_verdict_needs_both_other_images_and_none():
    sure, unsure = bootstrap.Interval(0.2, 0.1, 0.3), bootstrap.Interval(0.02, -0.1, 0.1)
    assert uses_image({"swapped": sure, "blind": sure, "mean": unsure})
    assert not uses_image({"swapped": unsure, "blind": sure})
    assert verdict({}) == "" and "no image costs 0.2 [0.1, 0.3]" in verdict({"blind": sure})


def test_statistics_of_matrices(tmp_path):
    params = {
        "connector": {"a": {"kernel": np.diag([3.0, 1.0, 0.0]), "bias": np.ones(3)}},
        "text": {"kernel": np.ones((2, 2))},
    }
    (row,) = statistics.of_matrices(params, ("connector",))
    found = dict(zip(statistics.COLUMNS, row))
    assert (found["parameter"], found["shape"]) == ("connector/a/kernel", "3x3")
    assert float(found["largest_singular"]) == 3 and float(found["near_zero"]) == pytest.approx(7 / 9, abs=1e-4)
    shares = np.array([0.75, 0.25])
    assert float(found["effective_rank"]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    data = Data()
    run(data, sees(data), tmp_path, variables={"params": params})
    assert "connector/a/kernel" in (tmp_path / "grounding" / "weights.csv").read_text()
    assert not (tmp_path / "grounding" / "gates.csv").exists()
    params["text"] = {f"blocks_{i}": {"look": {"cross_gate": np.float32(i)}} for i in (1, 3)}
    run(data, sees(data), tmp_path, variables={"params": params})
    assert (tmp_path / "grounding" / "gates.csv").read_text().split() == [
        "gate,layer,value",
        "cross,1,0.76159",
        "cross,3,0.99505",
    ]


def test_attention_on_images_by_a_loop():
    rng = np.random.default_rng(0)
    B, depth, K, L = 2, 3, 2, 5
    weights = np.tril(rng.random((depth, B, K, L, L))) + 1e-3 * np.tril(np.ones((L, L)))
    weights /= weights.sum(axis=-1, keepdims=True)
    learned = np.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]])
    index = np.array([[0, 1, -1, -1, -1], [-1, 0, -1, -1, -1]])
    found = looking.on_images(jnp.asarray(weights), jnp.asarray(learned), jnp.asarray(index))
    for b, queries in enumerate([(2, 3), (1, 2)]):
        expected = weights[:, b][:, :, list(queries)][..., index[b] >= 0].sum(-1).mean(-1)
        np.testing.assert_allclose(found["mass"][b], expected, rtol=1e-5)
        share = np.mean([(index[b, : q + 1] >= 0).sum() / (q + 1) for q in queries])
        np.testing.assert_allclose(found["share"][b], share, rtol=1e-5)


def page_of(folder, n=30, shown=100, hostile=True):
    data = Data(n, hostile=hostile)
    fields = {"max_images": shown}
    picture = lambda i: (255 * data.images[i]).astype(np.uint8)  # noqa: E731
    return run(data, sees(data), folder, fields=fields, picture=picture).page


def test_the_page_shows_answers_beside_those_without_the_image(open_page, tmp_path):
    page = open_page(page_of(tmp_path))
    assert page.evaluate("window.hacked") is None
    articles = page.locator("article")
    assert page.locator("h2").first.inner_text() == "The image is used"
    rows = page.locator("#grounding tbody tr")
    assert rows.count() == 4 and "another example" in rows.first.inner_text()
    assert articles.count() == 30 and "All 30 evaluated examples" in page.locator(".note.above").last.inner_text()
    assert HOSTILE in articles.first.locator("h3").inner_text()
    text = articles.first.inner_text()
    assert all(part in text for part in ("answer", "truth", "without image", "another's image", "record-"))
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/webp'))")
    page.locator("#kind").select_option("number")
    assert articles.count() == 10 and "10 of 30 examples" in page.locator("#count").inner_text()
    page.locator("#kind").select_option("")
    page.locator("#which").select_option("worse")
    worse = articles.count()
    page.locator("#which").select_option("same")
    assert worse > 0 and worse + articles.count() == 30
    page.locator("#which").select_option("")
    page.locator("#filter").fill("record-7 COLOUR")
    assert articles.count() == 1 and "record-7" in articles.first.inner_text()
    page.locator("#filter").fill("")
    page.locator("[data-order=drop]").click()
    blind = articles.first.locator("dd").nth(2).inner_text()
    assert blind.endswith("0") and page.locator("[data-order=drop]").get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_a_page_holds_the_worst_and_the_best(open_page, tmp_path):
    page = open_page(page_of(tmp_path, n=60, shown=11), width=390)
    assert page.locator("article").count() == 11
    assert "the 6 worst and the 5 best" in page.locator(".note.above").last.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page_of(tmp_path / "none", shown=0) is None


def test_grounding_refuses_what_has_nothing_to_compare():
    evaluator = evaluation.build("features", {}, batches=lambda: [])
    with pytest.raises(TypeError, match="nothing to compare"):
        Grounded(evaluator)
    assert dataclasses.replace(grounded(Data()), conditions=()).metrics == ("accuracy", "mean_type_accuracy", "n")
