"""CoCa on the embedded emoji and their English names: which name belongs to which picture, and the name itself.

python scripts/train.py --config=configs/coca_emoji.py --workdir=workdirs/coca
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

LENGTH = 32


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, epochs=60, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 128
    config.image_size = 32 if args.debug else 64
    size = config.get_ref("image_size")

    width, depth, heads = (24, 2, 3) if args.debug else (128, 4, 4)
    sizes = dict(width=width, heads=heads, mlp_width=4 * width)
    config.task = dict(name="coca", contrast_weight=1.0, caption_weight=2.0)
    config.model = dict(
        name="coca",
        image=dict(name="vit", depth=depth, patch_size=8, image_size=size, positions="sincos", drop_path=0.1, **sizes),
        text=dict(
            name="text", depth=2, vocab_size=2000, length=LENGTH, pool="cls", norm_pooled=True, dropout=0.1, **sizes
        ),
        embed_dim=width,
        queries=17,
        pool_heads=heads,
        decoder_depth=2,
        decoder_heads=heads,
        scan=False,
    )

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|normalize('half')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('half')"
    tokenize = f"|tokenize('emoji', {LENGTH}, 'name')"
    config.data = dict(
        source="emoji",
        train=dict(split="train[:64]" if args.debug else "train", ops=crop + tokenize),
        eval=dict(split="test[:16]" if args.debug else "test", ops=whole + tokenize),
        workers=0,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.1, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="10%")
    config.evals = dict(
        english=dict(type="retrieval", every="25%"),
        zero_shot=dict(type="zero_shot", templates="name"),
    )
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)
