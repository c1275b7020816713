"""Faults of captions: what is made to have one has it, and what is made without has none."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm.jobs.prepare import captions

WORD = st.text(string.ascii_letters, min_size=2, max_size=8)
TEXT = st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"])).map(str.strip).filter(bool)
BLANK = st.text(" \t\n", max_size=2)


@given(st.lists(TEXT, max_size=4), BLANK)
def test_blank_captions_are_none_however_they_are_held(texts, blank):
    held = [blank, *(piece for text in texts for piece in (f"{blank}{text}{blank}", blank))]
    assert captions.captions_of("|".join(held), "|") == captions.captions_of(tuple(held)) == tuple(texts)
    assert captions.captions_of("red | shop") == ("red | shop",)
    assert captions.captions_of(None) == captions.captions_of(blank) == ()


@given(
    st.lists(WORD, min_size=1, max_size=4),
    st.sampled_from(" -_"),
    st.sampled_from(["", ".jpg", ".PNG", ".webp"]),
    st.sampled_from([str.upper, str.lower, str.title]),
)
def test_the_stem_of_the_file_is_its_name_however_it_is_written(words, separator, suffix, case):
    name = f"some/folder/{'_'.join(words)}.jpg"
    assert captions.fault(case(separator.join(words)) + suffix, name) == "file_name"


@given(
    st.sampled_from(["IMG", "DSC", "dscf", "PXL", "Photo", "Screenshot", "WhatsApp Image", "WP"]),
    st.sampled_from(["", "_", "-", " "]),
    st.integers(0, 10**8),
    st.sampled_from(["", ".jpg", ".jpeg"]),
)
def test_what_cameras_and_programs_write_is_a_name(device, separator, number, suffix):
    assert captions.fault(f"{device}{separator}{number:04d}{suffix}", "a/b.png") == "file_name"


@given(st.lists(WORD, min_size=2, max_size=8), WORD)
def test_sentences_have_no_fault_and_words_are_single(words, word):
    name = "zz/zzzzzzzzzzzz.jpg"
    assert captions.fault(f"the {' '.join(words)}.", name) is None
    assert captions.fault(word, name) == "one_word"


@pytest.mark.parametrize(
    "caption", ["P1000123.JPG", "20240131_143000", "cat.jpg", "0f3a9c41d2", "Screenshot 2024-01-31"]
)
def test_more_names(caption):
    assert captions.names_the_file(caption, "x/y.png")


@pytest.mark.parametrize("caption", ["7", "100", "a cat, file cat.jpg", "photo of 2 cats", "image", "decade", "No. 5"])
def test_no_names(caption):
    assert not captions.names_the_file(caption, "x/y.png")


@given(st.lists(WORD, min_size=1, max_size=5))
def test_captions_are_the_same_but_for_case_spaces_and_the_last_stop(words):
    plain = " ".join(words)
    assert captions.key(f"  {'  '.join(words).upper()} .") == captions.key(plain) != captions.key(plain + "x")
