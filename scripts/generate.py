"""Texts after prompts, from the weights of a language model.

    python scripts/generate.py --weights=PATH --prompt="The cat sat on"
    python scripts/generate.py --weights=PATH --prompt="What is a patch?" --chat --temperature=0.7 --top_p=0.9
    python scripts/generate.py --weights=PATH --prompts=prompts.jsonl --out=texts.jsonl --dtype=int8 --batch_size=4
    python scripts/generate.py --weights=PATH --prompts=- --out=texts.jsonl < prompts.txt
    python scripts/generate.py --weights=PATH --image=a.jpg --image=b.jpg --prompt="What do they share?" --attention
    python scripts/generate.py --weights=PATH --image=a.jpg --chat

One prompt is answered on the terminal as the text comes; those of a file, a line each, plain or as JSON with "prompt"
or "messages" and perhaps "image" or "images", in a file of JSON lines, which a second run goes on with. With --chat
alone it is a conversation: questions are lines of the standard input, and the images stay. The weights are anything
that `pretrained.load` reads; see docs/language_models.md and docs/vlm.md.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from vitvlm.core.config import ConfigError
from vitvlm.generation import Options, choose, looking
from vitvlm.jobs import generate, launch
from vitvlm.nn.rows import KINDS

WEIGHTS = flags.DEFINE_string("weights", None, "Weights of a language model.", required=True)
FIELDS = launch.define_fields()
PROMPT = flags.DEFINE_string("prompt", None, "A text to go on from.")
PROMPTS = flags.DEFINE_string("prompts", None, "A file of prompts, one a line; - for the standard input.")
IMAGE = flags.DEFINE_multi_string(
    "image", [], "An image of the prompt or the conversation; may be given several times."
)
ATTENTION = flags.DEFINE_bool("attention", False, "Give the share of attention on each image, word by word.")
OUT = flags.DEFINE_string("out", None, "File of JSON lines to write the texts of --prompts to.")
CHAT = flags.DEFINE_bool("chat", False, "Prompts are a user's messages; alone: a conversation.")
SYSTEM = flags.DEFINE_string("system", "", "A system's message before each of them.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Prompts at a time.", lower_bound=1)
DTYPE = flags.DEFINE_enum(
    "dtype", None, KINDS, "How matrices are stored, by rows for one prompt; default: as they are."
)
CACHE = flags.DEFINE_enum("cache", None, ["float32", "bfloat16", "int8"], "How keys and values are cached.")
ANSWERS = flags.DEFINE_list("answers", [], "The likeliest of these after --prompt is printed, with all likelihoods.")
NORMALIZE = flags.DEFINE_string("normalize", "none", "Likelihoods of --answers by none, tokens or characters.")

MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "The most tokens to write.")
MIN_NEW_TOKENS = flags.DEFINE_integer("min_new_tokens", 0, "No stop token before so many.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of the draws; 0 takes the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Only the so many likeliest tokens are drawn; 0: all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Only the likeliest tokens that together have this probability.")
MIN_P = flags.DEFINE_float("min_p", 0.0, "Only tokens with this share of the likeliest one's probability.")
REPETITION_PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Lowers tokens that the text has already.")
SAMPLES = flags.DEFINE_integer("samples", 1, "Texts for each prompt; of a beam search the best.")
BEAMS = flags.DEFINE_integer("beams", 1, "Hypotheses of a beam search; 1: none.")
LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 1.0, "Beams are ranked by log-likelihood / tokens^this.")
EARLY_STOPPING = flags.DEFINE_enum("early_stopping", "false", ["true", "false", "never"], "When a beam search ends.")
STOP = flags.DEFINE_multi_string("stop", [], "A string that ends a text; may be given several times.")
STOP_TOKENS = flags.DEFINE_list("stop_tokens", [], "Tokens that end a text besides the model's own: <|im_end|>.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
LOG_PROBS = flags.DEFINE_bool("log_probs", False, "Give each token's log-probability.")
DRAFT = flags.DEFINE_integer("draft", 0, "Tokens copied from the text so far and checked in one pass.")


def main() -> None:
    try:
        _generate()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)  # as shells have it


def _generate() -> None:
    if PROMPT.value is not None and PROMPTS.value is not None:
        raise ConfigError("give --prompt or --prompts, one of them")
    talks = PROMPT.value is None and PROMPTS.value is None
    if talks and not CHAT.value:
        raise ConfigError("give --prompt or --prompts, one of them, or --chat for a conversation")
    if PROMPTS.value is not None and OUT.value is None:
        raise ConfigError("--prompts: give --out, a file for the texts")
    if PROMPTS.value is not None and IMAGE.value:
        raise ConfigError('--image: is of a --prompt; a line of --prompts has "image" or "images" of its own')
    if talks and (OUT.value is not None or SAMPLES.value > 1):
        raise ConfigError("--out and --samples: a conversation has one answer to each question, on the terminal")
    options = Options(
        max_new_tokens=MAX_NEW_TOKENS.value,
        min_new_tokens=MIN_NEW_TOKENS.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        min_p=MIN_P.value,
        repetition_penalty=REPETITION_PENALTY.value,
        samples=SAMPLES.value,
        beams=BEAMS.value,
        length_penalty=LENGTH_PENALTY.value,
        early_stopping={"true": True, "false": False, "never": "never"}[EARLY_STOPPING.value],
        stop=tuple(STOP.value),
        seed=SEED.value,
        log_probs=LOG_PROBS.value,
        draft=DRAFT.value,
    )
    fields = launch.named_values(FIELDS.value)
    prompts = [] if talks else _prompts()
    images = [generate.Prompt(0, "--image", "", images=tuple(IMAGE.value))]
    generate.check_images(images if PROMPTS.value is None else prompts)
    shows = any(prompt.images for prompt in (*images, *prompts))
    if ATTENTION.value and not shows:
        raise ConfigError("--attention: there is no image to look at: give --image")
    writer = generate.load(WEIGHTS.value, DTYPE.value, CACHE.value, **fields)
    options = dataclasses.replace(options, stop_ids=generate.stop_tokens(writer, STOP_TOKENS.value))
    if ATTENTION.value:
        looking.check(writer.loaded.model)
    if writer.loaded.model.sees_images and not shows:
        print("no --image: it writes about the text alone", file=sys.stderr)
    if ANSWERS.value:
        if PROMPT.value is None:
            raise ConfigError("--answers: are those of one --prompt")
        inputs = generate.shown(writer, prompts, CHAT.value, SYSTEM.value).inputs if IMAGE.value else {}
        if "image_index" in inputs:
            raise ConfigError("--answers with --image: only of a model that looks at images by cross-attention")
        ((index, scored),) = choose(writer.loaded, [PROMPT.value], ANSWERS.value, NORMALIZE.value, inputs)
        print(json.dumps({"answer": ANSWERS.value[index], "log_likelihoods": [one.total for one in scored]}))
    elif talks:
        typed = sys.stdin.isatty()
        lines = _questions() if typed else sys.stdin
        generate.converse(writer, lines, IMAGE.value, options, SYSTEM.value, ATTENTION.value, typed)
    elif OUT.value is None:
        prompt = generate.shown(writer, prompts, CHAT.value, SYSTEM.value)
        generate.to_terminal(writer, prompt, options, ATTENTION.value)
    else:
        settings = {"weights": WEIGHTS.value, "dtype": DTYPE.value, "cache": CACHE.value, "fields": fields}
        how = {"batch_size": BATCH_SIZE.value, "chat": CHAT.value, "system": SYSTEM.value}
        how["attention"] = ATTENTION.value
        count = generate.to_file(writer, prompts, options, OUT.value, settings, **how)
        print(f"{count} prompts written to; {len(prompts)} are in {OUT.value}")


def _prompts() -> list[generate.Prompt]:
    if PROMPT.value is not None:
        if not (PROMPT.value or IMAGE.value):
            raise ConfigError("--prompt: is empty: give it a text to go on from")
        return [generate.Prompt(0, "--prompt", PROMPT.value, images=tuple(IMAGE.value))]
    if PROMPTS.value == "-":
        return list(generate.read_prompts(sys.stdin, "standard input"))
    try:
        with open(PROMPTS.value, encoding="utf-8") as file:
            return list(generate.read_prompts(file, PROMPTS.value, Path(PROMPTS.value).parent))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts={PROMPTS.value}: cannot be read: {error}") from None


def _questions() -> Iterator[str]:
    """Questions that are typed, until the end of the input, or Ctrl-C in place of one."""
    print("Ctrl-C stops an answer, Ctrl-D ends the conversation.", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


if __name__ == "__main__":
    launch.run(main)
