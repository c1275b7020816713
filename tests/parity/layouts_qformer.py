"""Layouts of models with a Q-Former: BLIP-2 and InstructBLIP of `transformers`, and MiniGPT-4's file."""

from pathlib import Path

import torch
from blip2s import IMAGES, MASK, TEXTS, long, retrieval, writing
from huggingface import array, pixels
from layouts import Layout, published
from test_minigpt4 import ASKED, reference


@published("Blip2ForImageTextRetrieval")
def blip2_retrieval(folder: Path) -> Layout:
    theirs = retrieval()
    theirs.save_pretrained(folder)
    expected = theirs(pixels(IMAGES), long(TEXTS), long(MASK)).logits_per_image
    return Layout(folder, (IMAGES, TEXTS, MASK), expected={"logits_per_image": array(expected)})


@published("Blip2ForConditionalGeneration")
def blip2(folder: Path) -> Layout:
    return language(folder, "opt", instructed=False)


@published("InstructBlipForConditionalGeneration")
def instructblip(folder: Path) -> Layout:
    return language(folder, "llama", instructed=True)


def language(folder: Path, kind: str, instructed: bool) -> Layout:
    """The logits of the first text, which has no padding."""
    case = writing(kind, instructed=instructed)
    case.theirs.save_pretrained(folder)
    one = {name: value[:1] for name, value in case.given.items()}
    expected = case.theirs(input_ids=long(case.texts[:1]), attention_mask=long(case.mask[:1]), **one).logits
    named = {name: value[:1] for name, value in case.ours.items()}
    return Layout(folder, (named.pop("images"), case.texts[:1]), named, {"logits": array(expected)})


@published("MiniGPT-4, all its parts in one file")
def minigpt4(folder: Path) -> Layout:
    _, path, (image, *_) = reference()
    return Layout(path, (IMAGES[:2], TEXTS[:2]), expected={"image_tokens": array(image)[:, None]}, fields=ASKED)


@published("MiniGPT-4's projection alone")
def projection(folder: Path) -> Layout:
    torch.save({"model": {"llama_proj.weight": torch.zeros(2), "llama_proj.bias": torch.zeros(2)}}, folder / "p.pth")
    return Layout(folder / "p.pth")
