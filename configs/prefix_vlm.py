"""Five vision-language models that read image tokens among those of a text, trained on questions about scenes.

    python scripts/train.py --config=configs/prefix_vlm.py:system=idefics3 --workdir=workdirs/idefics3

`system` is paligemma (the prompt is read both ways), nanovlm or idefics3 (tiles, and neighbours put into channels),
llava_next (the best grid of tiles, a newline behind each row of tokens) or qwen2_vl (images of every shape, positions
of three axes). Small models from nothing; the published ones are `models.build("vlm", variant="nanoVLM-222M")` and so
on, and `init_from` reads their folders.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

SYSTEMS = ("paligemma", "nanovlm", "idefics3", "llava_next", "qwen2_vl")
ROWS = tuple(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))
# Tokens that are added to the tokenizer "emoji", whose own are VOCABULARY: the image's first.
ADDED = {
    "nanovlm": ("<|image|>", "<|global_image|>", *ROWS),
    "idefics3": ("<image>", "<fake_token_around_image>", "<global-img>", *ROWS),
    "qwen2_vl": ("<|image_pad|>",),
}
VOCABULARY = 2000
TINY = dict(width=24, depth=2, heads=2, mlp_width=32)
SMALL = dict(width=192, depth=6, heads=6, mlp_width=768)


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, system="paligemma", epochs=3, debug=False)
    if args.system not in SYSTEMS:
        raise ConfigError(f"config argument system={args.system}: {suggest(args.system, SYSTEMS)}")
    added = ADDED.get(args.system, ("<image>",))
    patch, tile = (4, 16) if args.debug else (8, 32)
    cut, count, tokens = _pixels(args.system, tile, patch)

    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 4 if args.debug else 64
    config.task = dict(name="next_token")
    config.model = dict(name="vlm", **_model(args.system, tile, patch, TINY if args.debug else SMALL))
    length = count * tokens + 64
    rules = f"added='{' '.join(added)}', image_token='{added[0]}', image_tokens={tokens}, separator=' '"
    said = f"supervise('emoji', {length}, {rules})"
    config.data = dict(
        source=f"scenes:ask,side={2 * tile}",
        train=dict(split="train[:16]" if args.debug else "train", ops=f"decode(3)|{cut}|{said}"),
        eval=dict(split="test[:8]" if args.debug else "test", ops=f"decode(3)|{cut}|{said}"),
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


def _pixels(system: str, tile: int, patch: int) -> tuple[str, int, int]:
    """Operations that make an image's tiles, how many there are at most, and the tokens of each."""
    side = tile // patch
    several = "|normalize('half', field='images')|pad('images', 5)"
    if system == "paligemma":
        return f"resize({2 * tile})|normalize('half')", 1, (2 * side) ** 2
    if system == "nanovlm":
        return f"tile_nanovlm({tile}, {(side // 2) ** 2}, {2 * tile}, field='image'){several}", 5, (side // 2) ** 2
    if system == "idefics3":
        return f"tile_idefics3({tile}, {(side // 2) ** 2}, {2 * tile}, field='image'){several}", 5, (side // 2) ** 2
    if system == "llava_next":
        grids = ((2 * tile, 2 * tile), (tile, 2 * tile), (2 * tile, tile))
        return f"tile_llava_next({tile}, {side}, {grids}, field='image'){several}", 5, side**2
    pixels, patches = 4 * tile**2, 4 * side**2
    resize = f"smart_resize({2 * patch}, {4 * patch**2}, {pixels})|normalize('half')"
    return f"{resize}|merge_patches({patch}, {patches}, field='image')|pad('images', 1)", 1, patches // 4


def _model(system: str, tile: int, patch: int, sizes: dict) -> dict:
    """The parts of a model that are the system's."""
    vocab_size = VOCABULARY + len(ADDED.get(system, ("<image>",)))
    text = dict(name="decoder", vocab_size=vocab_size, length=256, **sizes)
    image = dict(name="vit", patch_size=patch, image_size=tile, pool="gap", activation="gelu_tanh", **sizes)
    if system == "paligemma":
        gemma = dict(norm="rms_zero_centred", activation="gelu_tanh", scale_embed=True, tied=True, kv_heads=1)
        parts = dict(image=image | dict(image_size=2 * tile), connector=dict(name="linear"), prefix_lm=True)
        return dict(**parts, text=text | gemma, image_token=VOCABULARY)
    if system in ("nanovlm", "idefics3"):
        scaling = dict(kind="dynamic_linear", factor=1.0, original_length=text["length"])
        text |= dict(tied=True, rope=dict(scaling=scaling)) if system == "nanovlm" else dict(tied=False)
        return dict(
            image=image,
            connector=dict(name="pixel_shuffle", factor=2),
            text=text,
            image_token=VOCABULARY,
        )
    if system == "llava_next":
        clip = dict(pool="cls", pre_norm=True, patch_bias=False, norm_pooled=True, activation="quick_gelu")
        parts = dict(image=image | clip, connector=dict(name="mlp"), features=(-2,), own_tokens=1)
        return dict(**parts, text=text, image_token=VOCABULARY)
    head = sizes["width"] // sizes["heads"]
    axes = (0,) * (head // 8) + (1,) * (3 * head // 16)
    axes += (2,) * (head // 2 - len(axes))  # a quarter of time, the others of rows and columns, as the published ones
    return dict(
        image=dict(name="qwen_vit", patch_size=patch, merge=2, **sizes),
        connector=dict(name="mlp", hidden=4 * sizes["width"]),
        text=text | dict(qkv_bias=True, rope=dict(axes=axes)),
        image_token=VOCABULARY,
    )
