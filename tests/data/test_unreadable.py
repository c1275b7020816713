"""Unreadable images in batches: masked, counted, named, and too many of them an end."""

import pictures
import pytest
from batching import AUGMENTED, PLAIN, assert_equal, damage, take

from vitvlm.data import loader, sources
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import TooManyUnreadable


def test_unreadable_images_are_masked_counted_and_named_also_after_a_resume(tmp_path):
    folder = pictures.folder(tmp_path, {"cat": 15, "dog": 8})
    damage(folder, ["cat/003.png", "dog/001.png"])
    source = sources.open(f"folder:{folder}", "all")
    bad = {source.ids.index(name) for name in ("cat/003.png", "dog/001.png")}
    with train_batches(source, AUGMENTED, 4, seed=0, max_unreadable_fraction=0.2) as batches:
        seen = take(batches, 12)
        state = batches.get_state()
        counts = (batches.bad.seen, batches.bad.count)
    for batch in seen:
        masked = set(batch["index"][batch["example_mask"] == 0])
        assert masked == set(batch["index"]) & bad and not batch["image"][batch["example_mask"] == 0].any()
    assert counts == (48, sum((b["example_mask"] == 0).sum() for b in seen)) and counts[1] >= 4
    assert set(batches.bad.names) == {"cat/003.png", "dog/001.png"}
    assert "cat/003.png: " in str(batches.bad)
    with train_batches(source, AUGMENTED, 4, seed=0, max_unreadable_fraction=0.2, workers=1) as batches:
        batches.set_state(state)
        assert (batches.bad.seen, batches.bad.count) == counts and len(batches.bad.names) == 2
        next(batches)
        assert batches.bad.seen == 52


def test_too_many_unreadable_images_stop_with_their_names(tmp_path):
    folder = pictures.folder(tmp_path, {"cat": 20})
    damage(folder, [f"cat/{i:03d}.png" for i in range(5)])
    source = sources.open(f"folder:{folder}", "all")
    with (
        train_batches(source, PLAIN, 4, seed=0, max_unreadable_fraction=0.2) as batches,
        pytest.raises(
            TooManyUnreadable, match=r"images cannot be read, more than max_unreadable_fraction=0.2: cat/00\d.png: "
        ),
    ):
        take(batches, 5)
    evaluated = eval_batches(source, PLAIN, 4, max_unreadable_fraction=0.25)
    assert (
        sum(b["example_mask"].sum() for b in evaluated) == 15 and evaluated.bad.count == 5 and evaluated.bad.seen == 20
    )
    with pytest.raises(TooManyUnreadable):
        list(eval_batches(source, PLAIN, 4, max_unreadable_fraction=0.24))
    with pytest.raises(TooManyUnreadable):
        list(eval_batches(source, PLAIN, 4, max_unreadable_fraction=0.0))


def test_one_bad_image_at_the_start_does_not_stop_a_job(tmp_path):
    folder = pictures.folder(tmp_path, {"cat": 30})
    first = sources.open(f"folder:{folder}", "all").ids[0]
    damage(folder, [first])
    source = sources.open(f"folder:{folder}", "all")
    evaluated = eval_batches(source, PLAIN, 3, max_unreadable_fraction=0.05)
    assert sum(b["example_mask"].sum() for b in evaluated) == 29 and list(evaluated.bad.names) == [first]
    with pytest.raises(TooManyUnreadable):
        list(eval_batches(source, PLAIN, 3, max_unreadable_fraction=0.05, bad_after=1))


@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_files_that_vanish_late_do_not_hide_behind_what_was_read_before(kind, tmp_path, monkeypatch):
    """36 of 40 files go after 40 epochs; of all images seen, they are a tenth only five epochs later."""
    monkeypatch.setattr(loader, "KEPT_BYTES", 0)
    folder = pictures.folder(tmp_path, {"cat": 40})
    spec = f"folder:{folder}"
    if kind == "jsonl":
        (tmp_path / "list.jsonl").write_text("".join(f'{{"image": "cat/{i:03d}.png"}}\n' for i in range(40)))
        spec = f"jsonl:{tmp_path / 'list.jsonl'}"
    with train_batches(
        sources.open(spec, "all"), PLAIN, 4, seed=0, max_unreadable_fraction=0.1, bad_after=10
    ) as batches:
        take(batches, 400)
        for i in range(36):
            (folder / "cat" / f"{i:03d}.png").unlink()
        with pytest.raises(TooManyUnreadable, match=r"in epoch 4\d of the data, .*cat/0\d\d.png: No such file"):
            take(batches, 10)


def test_a_few_bad_files_in_every_epoch_are_borne_for_ever(tmp_path):
    folder = pictures.folder(tmp_path, {"cat": 40})
    damage(folder, [f"cat/{i:03d}.png" for i in range(4)])
    source = sources.open(f"folder:{folder}", "all")
    with train_batches(source, PLAIN, 4, seed=0, max_unreadable_fraction=0.12, bad_after=40) as batches:
        take(batches, 300)
        assert (batches.bad.count, batches.bad.seen) == (120, 1200)


def test_a_batch_without_a_readable_image_is_passed_over_and_said(tmp_path):
    """With one readable file among eight, batches of two hold it in a quarter of the cases."""
    folder = pictures.folder(tmp_path, {"cat": 8})
    damage(folder, [f"cat/{i:03d}.png" for i in range(7)])
    source = sources.open(f"folder:{folder}", "all")
    said = []
    with train_batches(source, PLAIN, 2, seed=0, max_unreadable_fraction=1) as batches:
        batches.say = said.append
        seen = take(batches, 6)
        assert [batch["example_mask"].sum() for batch in seen] == [1] * 6
        skipped, state = batches.skipped, batches.get_state()
        assert batches.bad.seen == 2 * (6 + skipped) and skipped >= 6 * 3 - 3
        assert said.count("skipped: a batch of 2 images, none of which can be read") == skipped
        ahead = take(batches, 3)
    with train_batches(source, PLAIN, 2, seed=0, max_unreadable_fraction=1) as batches:
        batches.set_state(state)
        assert batches.skipped == skipped
        assert_equal(take(batches, 3), ahead)


def test_once_nothing_can_be_read_any_more_the_job_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "KEPT_BYTES", 0)
    folder = pictures.folder(tmp_path, {"cat": 4})
    with train_batches(sources.open(f"folder:{folder}", "all"), PLAIN, 2, seed=0, max_unreadable_fraction=1) as batches:
        take(batches, 2)
        for path in folder.rglob("*.png"):
            path.unlink()
        with pytest.raises(TooManyUnreadable, match=r"none of the last \d+ images can be read: cat/00"):
            take(batches, 30)


def test_unreadable_images_are_named_as_they_are_met_and_of_many_the_first(tmp_path, caplog):
    folder = pictures.folder(tmp_path, {"cat": 30})
    names = [f"cat/{i:03d}.png" for i in range(25)]
    damage(folder, names)
    source = sources.open(f"folder:{folder}", "all")
    with train_batches(source, PLAIN, 5, seed=0, max_unreadable_fraction=0.9) as batches:
        seen, said = 0, []
        for _ in range(12):
            caplog.clear()
            batch = next(batches)
            said += [line for line in caplog.messages if not line.startswith("skipped")]
            met = {source.ids[i] for i in batch["index"][batch["example_mask"] == 0]}
            seen = len(set(batches.bad.names))
            assert len(said) == min(seen, 20) and (seen > 20 or all(any(n in line for line in said) for n in met))
    assert seen == 25 and said[0].startswith("cannot be read: cat/0")
    assert said[-1].endswith("; further ones are counted, and not named one by one")


def test_a_folder_of_nothing_readable_is_refused_at_once(tmp_path):
    folder = pictures.folder(tmp_path, {"cat": 3})
    damage(folder, [f"cat/{i:03d}.png" for i in range(3)])
    with pytest.raises(TooManyUnreadable, match="none of the first 3 images can be read: cat/00"):
        train_batches(sources.open(f"folder:{folder}", "all"), PLAIN, 2, seed=0)
