"""Flamingo: gated blocks before a language model's own look at what a perceiver makes of images (Alayrac et al. 2022).

    python scripts/train.py --config=configs/flamingo.py --workdir=workdirs/flamingo
    python scripts/train.py --config=configs/flamingo.py:adapt=cross,text=weights/smollm2.gguf,image=workdirs/mae \\
        --workdir=workdirs/flamingo_smollm2

Emoji and their names. `adapt` is full, or cross: what looks at images and the new token "<image>" train, the image
encoder and the language model stay as they are. `text` and `image` are where their parameters come from: SmolLM2-135M,
found as `configs/lm_emoji.py` says, and a training of `configs/mae.py`. `size=9B` is OpenFlamingo's: CLIP-L/14,
LLaMA-7B, and a gated block before every fourth layer, whose memory `scripts/adapting_memory.py` tells.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

LENGTH = 32
KINDS, SIZES = ("full", "cross"), ("emoji", "9B")
TINY = dict(width=24, depth=2, heads=4, kv_heads=2, mlp_width=32)
SMALL = dict(width=128, depth=4, heads=4, mlp_width=512)
VISION = dict(name="vit", patch_size=8, positions="sincos", pool="gap", cls_token=True)  # as configs/mae.py's encoder


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, adapt="full", size="emoji", text="", image="", epochs=40, debug=False)
    for name, there in (("adapt", KINDS), ("size", SIZES)):
        if getattr(args, name) not in there:
            raise ConfigError(f"config argument {name}={getattr(args, name)}: {suggest(getattr(args, name), there)}")
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 4 if args.debug else 64
    config.image_size = 32 if args.debug else 64

    config.task = dict(name="next_token")
    config.model = dict(name="vlm", **(_published() if args.size == "9B" else _small(config, args.debug, args.text)))
    if args.size == "9B":
        config.image_size, config.batch_size = 224, 32
        config.mesh, config.sharding = dict(fsdp=-1), "fsdp"
        config.total = "100000 steps"
    sources = {}
    if args.text:
        rules = (("(image|connector)/.*|.*/look/.*|.*_added/.*", None), ("text/(.*)", r"\1"))
        sources["text"] = dict(path=args.text, rules=rules)
    if args.image:
        rules = (("(text|connector)/.*", None), ("image/(.*)", r"vit/\1"))
        sources["image"] = dict(path=args.image, rules=rules, ignore=("decoder/.*",))
    if sources:
        config.init_from = sources

    tokenizer = f"gguf:{args.text}" if args.text else "emoji"
    pixels = f"decode(3)|resize({config.image_size})|normalize('half')"
    records = f"|supervise('{tokenizer}', {LENGTH}, answer='name', image_tokens=1, image_separator='')"
    config.data = dict(
        source="emoji",
        train=dict(split="train[:16]" if args.debug else "train", ops=pixels + records),
        eval=dict(split="test[:8]" if args.debug else "test", ops=pixels + records),
        workers=0,
    )
    config.optimizer = dict(name="adamw", weight_decay=0.05, b2=0.99, clip_norm=1.0)
    if args.adapt == "cross":
        config.optimizer.freeze = (("text/(.*/look/.*|.*_added/.*)", False), ("(image|text)/.*", True), (".*", False))
        if args.size == "9B":
            config.frozen_dtype = ((".*", "bfloat16"),)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="5%")
    few = dict(split="test[:8]" if args.debug else "test[:64]")
    config.evals = dict(
        held_out=dict(type="perplexity", at_start=True, every="25%"),
        image_gap=dict(type="image_gap", data=few, at_start=True, every="25%" if args.debug else "10%"),
    )
    config.checkpoint = dict(every="25%", keep_last=1)
    config.log = dict(every=1 if args.debug else 10)
    return arguments.apply(args, config)


def _small(config: ConfigDict, debug: bool, text: str) -> dict:
    sizes = TINY if debug else SMALL
    image = {name: size for name, size in sizes.items() if name != "kv_heads"}
    resampler = (
        dict(latents=4, depth=1, heads=2, head_dim=8) if debug else dict(latents=16, depth=2, heads=4, head_dim=32)
    )
    vocab_size = 49_152 if text else 2000
    decoder = dict(variant="SmolLM2-135M") if text else dict(length=LENGTH, **sizes)
    return dict(
        image=dict(**VISION, image_size=config.get_ref("image_size"), **image),
        connector=dict(name="gated_cross_attention", **resampler, look=dict(every=2, first=1)),
        text=dict(name="decoder", vocab_size=vocab_size + 1, added_tokens=1, **decoder),
        image_token=vocab_size,
    )


def _published() -> dict:
    vision = dict(name="vit", variant="L/14", image_size=224, pre_norm=True, norm_pooled=True, patch_bias=False)
    return dict(
        image=dict(**vision, activation="quick_gelu", norm_eps=1e-5),
        connector=dict(name="gated_cross_attention", look=dict(every=4, first=3)),
        text=dict(name="decoder", variant="LLaMA-7B", vocab_size=32_002, added_tokens=2),
        image_token=32_001,
        remat="full",
    )
