"""CLIP or SigLIP on the embedded emoji and their names, English and Japanese; judged by retrieval and zero-shot.

    python scripts/train.py --config=configs/clip_emoji.py --workdir=workdirs/clip
    python scripts/train.py --config=configs/clip_emoji.py:loss=sigmoid --workdir=workdirs/siglip
    python scripts/train.py --config=configs/clip_emoji.py:init=workdirs/mae --workdir=workdirs/clip_mae

In training an image goes with its name or one of its keywords, in either language, drawn anew each time. `init=WORKDIR`
starts the image tower from a training of `configs/mae.py`.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

LENGTH = 32


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, loss="softmax", init="", epochs=60, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 128
    config.image_size = 32 if args.debug else 64
    size = config.get_ref("image_size")

    width, depth, heads = (24, 2, 3) if args.debug else (128, 4, 4)
    sizes = dict(width=width, heads=heads, mlp_width=4 * width)
    config.task = dict(name="contrast", loss_kind=args.loss)
    config.model = dict(
        name="two_towers",
        image=dict(
            name="vit",
            depth=depth,
            patch_size=8,
            image_size=size,
            positions="sincos",
            pool="gap",
            cls_token=True,
            drop_path=0.1,
            **sizes,
        ),
        text=dict(name="text", depth=2, vocab_size=2000, length=LENGTH, eot_id=2, dropout=0.1, **sizes),
        embed_dim=width,
        scan=False,
    )
    if args.loss == "sigmoid":
        config.model.update(scale_init=10.0, bias_init=-10.0)
    if args.init:
        config.init_from = dict(
            path=args.init,
            rules=(("(text|project_image|project_text)/.*|log_scale|bias", None), ("image/(.*)", r"vit/\1")),
            ignore=("decoder/.*",),
        )

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|normalize('half')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('half')"
    tokenize = f"|tokenize('emoji', {LENGTH}"
    english, japanese = whole + tokenize + ", 'name')", whole + tokenize + ", 'name_ja')"
    config.data = dict(
        source="emoji",
        train=dict(
            split="train[:64]" if args.debug else "train",
            ops=crop + "|pick_text('name', 'name_ja', 'keywords', 'keywords_ja')" + tokenize + ")",
        ),
        eval=dict(split="test[:16]" if args.debug else "test", ops=english),
        workers=0,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.1, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="10%")
    config.evals = dict(
        english=dict(type="retrieval", every="25%"),
        japanese=dict(type="retrieval", data=dict(ops=japanese)),
        zero_shot=dict(type="zero_shot", templates="name"),
    )
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)
