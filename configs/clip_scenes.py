"""CLIP or SigLIP on procedural scenes: does it bind attributes and relations, or is it a bag of words?

    python scripts/train.py --config=configs/clip_scenes.py --workdir=workdirs/clip_scenes
    python scripts/train.py --config=configs/clip_scenes.py:loss=sigmoid --workdir=workdirs/siglip_scenes

Judged by the right caption against its hard negatives, by retrieval, and by where the embeddings lie.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

LENGTH = 40
KINDS = 5  # the caption and its negatives


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, loss="softmax", epochs=10, scenes=10_000, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 128
    config.image_size = 32 if args.debug else 64
    size = config.get_ref("image_size")

    width, depth, heads = (24, 2, 3) if args.debug else (128, 4, 4)
    sizes = dict(width=width, depth=depth, heads=heads, mlp_width=4 * width)
    config.task = dict(name="contrast", loss_kind=args.loss)
    config.model = dict(
        name="two_towers",
        image=dict(name="vit", patch_size=8, image_size=size, positions="sincos", pool="map", **sizes),
        text=dict(name="text", vocab_size=2000, length=LENGTH, eot_id=2, **sizes),
        embed_dim=width,
        scan=False,
    )
    if args.loss == "sigmoid":
        config.model.update(scale_init=10.0, bias_init=-10.0)

    image = "decode(3)|resize(" + size.to_str() + ")|normalize('half')"
    tokenize = f"|tokenize('emoji', {LENGTH}"
    config.data = dict(
        source="scenes:train=64,test=16" if args.debug else f"scenes:train={args.scenes}",
        train=dict(split="train", ops=image + "|pick_text('captions')" + tokenize + ")"),
        eval=dict(split="test", ops=image + tokenize + ")"),
        workers=0,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.1, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="10%")
    choices = dict(ops=image + tokenize + f", 'choices', max_texts={KINDS})")
    config.evals = dict(
        compositionality=dict(type="compositionality", data=choices, every="25%"),
        retrieval=dict(type="retrieval"),
        geometry=dict(type="embedding_geometry"),
        count_by_image=dict(type="linear_probe_logistic", features="image_embedding"),
        count_by_text=dict(type="linear_probe_logistic", features="text_embedding"),
    )
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)
