"""A LLaVA learns to answer questions about scenes: an image encoder, a connector and a decoder, each an argument.

    python scripts/train.py --config=configs/llava.py --workdir=workdirs/llava
    python scripts/train.py --config=configs/llava.py:connector=pixel_shuffle --workdir=workdirs/llava_shuffle
    python scripts/train.py --config=configs/llava.py:connector=none --workdir=workdirs/early

`connector` is mlp (LLaVA 1.5), linear (LLaVA 1), pixel_shuffle, average_pool, or none: early fusion, where patches go
straight into the decoder. `image` is the encoder, vit, swin or fpn, and `text` the decoder: llama, qwen2, gemma or
gpt2. Small models from nothing; the published ones are `models.build("vlm", variant="LLaVA-1.5-7B")` and so on, and
`init_from` reads their folders.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

CONNECTORS = {"mlp": 1, "linear": 1, "pixel_shuffle": 2, "average_pool": 2, "none": 1}  # by the sides that they divide
TEXTS = {
    "llama": {},
    "qwen2": dict(qkv_bias=True, tied=True),
    "gemma": dict(norm="rms_zero_centred", activation="gelu_tanh", scale_embed=True, tied=True, kv_heads=1),
    "gpt2": dict(positions="learned", norm="layer", mlp="plain", activation="gelu_tanh", tied=True),
}
VOCABULARY = 2000  # of the tokenizer "emoji", behind which the image token is added
TINY = dict(width=24, depth=2, heads=2, mlp_width=32)
SMALL = dict(width=192, depth=6, heads=6, mlp_width=768)


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, connector="mlp", image="vit", text="llama", epochs=3, debug=False)
    for name, known in (("connector", CONNECTORS), ("image", ("vit", "swin", "fpn")), ("text", TEXTS)):
        if getattr(args, name) not in known:
            raise ConfigError(f"config argument {name}={getattr(args, name)}: {suggest(getattr(args, name), known)}")
    side, patch = (32, 8) if args.debug else (64, 8)
    sizes = TINY if args.debug else SMALL
    image, features, grid = _encoder(args.image, side, patch, sizes)
    if args.connector == "none":
        image, features, grid = dict(patch_size=patch), ("tokens",), side // patch
    tokens = (grid // CONNECTORS[args.connector]) ** 2

    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 4 if args.debug else 64
    config.task = dict(name="next_token")
    config.model = dict(
        name="vlm",
        image=image,
        connector=dict(name=args.connector),
        text=dict(name="decoder", vocab_size=VOCABULARY + 1, length=256, **sizes, **TEXTS[args.text]),
        features=features,
        image_token=VOCABULARY,
    )
    rules = f"added='<image>', image_token='<image>', image_tokens={tokens}, separator=' '"
    ops = f"decode(3)|resize({side})|normalize('half')|supervise('emoji', {tokens + 64}, {rules})"
    config.data = dict(
        source=f"scenes:ask,side={side}",
        train=dict(split="train[:16]" if args.debug else "train", ops=ops),
        eval=dict(split="test[:8]" if args.debug else "test", ops=ops),
        workers=0,
    )
    config.optimizer = dict(name="adamw", weight_decay=0.05, b2=0.99, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="5%")
    few = dict(split="test[:8]" if args.debug else "test[:64]")
    config.evals = dict(
        held_out=dict(type="perplexity", at_start=True, every="25%"),
        image_gap=dict(type="image_gap", data=few, at_start=True, every="25%" if args.debug else "10%"),
    )
    config.checkpoint = dict(every="25%", keep_last=1)
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)


def _encoder(name: str, side: int, patch: int, sizes: dict) -> tuple[dict, tuple, int]:
    """The encoder, the features that are taken of it, and the side of their grid."""
    if name == "vit":
        clip = dict(pool="cls", pre_norm=True, patch_bias=False, norm_pooled=True, activation="quick_gelu")
        return dict(name="vit", patch_size=patch, image_size=side, **clip, **sizes), (-2,), side // patch
    width, heads = sizes["width"], sizes["heads"]
    if name == "swin":
        stages = dict(depths=(2, 2), heads=(heads // 2, heads), window=4, patch_size=patch // 2, image_size=side)
        return dict(name="swin", width=width // 2, **stages), ("tokens",), side // patch
    backbone = dict(name="resnet", widths=(width // 2, width), depths=(1, 1), stem_width=width // 4)
    return dict(name="fpn", backbone=backbone, width=width), ("tokens",), side // 8
