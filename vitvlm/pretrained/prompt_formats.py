"""Prompts with images as the processors of published models write them."""

import dataclasses
import re
from collections.abc import Callable, Mapping

FAKE = "<fake_token_around_image>"


def _between_fakes(prompt: str) -> str:
    """Idefics: a token before and behind each image, one between two, and no spaces beside them or at the ends."""
    return re.sub(r" *<image> *", f"{FAKE}<image>{FAKE}", prompt.strip(" ")).replace(FAKE * 2, FAKE)


def _between_ends(prompt: str) -> str:
    """Qwen2-VL: a token before and behind each image."""
    return prompt.replace("<image>", "<|vision_start|><image><|vision_end|>")


@dataclasses.dataclass(frozen=True)
class Format:
    """Rules by which an architecture's own processor writes a prompt with images.

    Fields:
      separator: between images that no marker places and the prompt.
      written, apart, bos_behind, end: see `data.operations.asking.PromptRules`.
    """

    separator: str = ""
    written: Callable[[str], str] | None = None
    apart: bool = False
    bos_behind: bool = False
    end: str = ""


# By the architecture that config.json names.
FORMATS: Mapping[str, Format] = {
    "LlavaForConditionalGeneration": Format(separator="\n"),
    "LlavaNextForConditionalGeneration": Format(separator="\n"),
    "IdeficsForVisionText2Text": Format(written=_between_fakes),
    "Idefics3ForConditionalGeneration": Format(),
    "SmolVLMForConditionalGeneration": Format(),
    "Qwen2VLForConditionalGeneration": Format(written=_between_ends),
    "PaliGemmaForConditionalGeneration": Format(bos_behind=True, end="\n"),
    "Blip2ForConditionalGeneration": Format(apart=True),
    "InstructBlipForConditionalGeneration": Format(apart=True),
    "OpenFlamingo": Format(),
}
