"""MiniGPT-4 (Zhu et al. 2024) on emoji: one linear map between BLIP-2's image side and a language model, all locked.

    python scripts/train.py --config=configs/minigpt4.py --workdir=workdirs/minigpt4
    python scripts/train.py --config=configs/minigpt4.py:stage=2,first=workdirs/minigpt4 --workdir=workdirs/minigpt4_2

Only the map from what the queries find to the language model's width learns. In the first stage the model says what a
picture shows, in the second it follows instructions. `first=PATH` is where the image side comes from, by default the
second stage of `configs/blip2.py`, whose first lines say how to link the image encoder; `lm=PATH` is the language model
(`configs/lm_emoji.py` says how to link it).
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError

LENGTH = 80  # with the image's tokens
PROMPTS = {1: ("Which of {group} is this?", "{name}"), 2: ("Give keywords of this, one of {group}.", "{keywords}")}


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(
        arg,
        stage=1,
        first="workdirs/blip2_2",
        lm="weights/smollm2.gguf",
        queries=32,
        size=112,
        epochs=8,
        debug=False,
    )
    if args.stage not in PROMPTS:
        raise ConfigError(f"config argument stage={args.stage}: write 1 or 2")
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 4 if args.debug else 16
    config.image_size = 28 if args.debug else args.size
    size = config.get_ref("image_size")

    tiny = dict(depth=2, heads=3, mlp_width=48)
    queries = 4 if args.debug else args.queries
    config.task = dict(name="next_token")
    config.model = dict(
        name="vlm",
        image=dict(
            name="vit",
            patch_size=14,
            image_size=size,
            layer_scale=1.0,
            **(dict(tiny, width=24) if args.debug else dict(variant="S", depth=11)),
        ),
        connector=dict(
            name="qformer",
            queries=queries,
            **(dict(tiny, query_width=24) if args.debug else dict(query_width=384, depth=6, heads=12, mlp_width=1536)),
        ),
        text=dict(
            name="decoder",
            **(
                dict(width=24, depth=2, heads=4, kv_heads=2, mlp_width=32, vocab_size=2000, length=LENGTH)
                if args.debug
                else dict(variant="SmolLM2-135M")
            ),
        ),
        keep_prefix=True,
        scan=False,
    )
    if not args.debug:
        begun = args.stage == 2 and args.first != "workdirs/blip2_2"
        fresh = () if begun else (("connector/projection/.*|text/.*", None),)
        config.init_from = dict(
            first=dict(path=args.first, rules=(*fresh, ("(.*)", r"\1")), ignore=("(connector/projection|text)/.*",)),
            **({} if begun else dict(text=dict(path=args.lm, rules=(("text/(.*)", r"\1"), (".*", None))))),
        )

    question, answer = PROMPTS[args.stage]
    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|normalize('imagenet')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('imagenet')"
    prompt = f"prompt='###Human: <Img><image></Img> {question} ###Assistant:', answer='{answer}', separator=' '"
    tokenizer = "emoji" if args.debug else f"gguf:{args.lm}"
    length = 64 if args.debug else LENGTH
    records = f"|supervise('{tokenizer}', {length}, {prompt}, image_tokens={queries}, surplus='cut')"
    config.data = dict(
        source="emoji",
        train=dict(split="train[:16]" if args.debug else "train", ops=crop + records),
        eval=dict(split="test[:8]" if args.debug else "test", ops=whole + records),
        workers=0,
    )

    config.optimizer = dict(
        name="adamw",
        b2=0.999,
        weight_decay=0.05,
        clip_norm=1.0,
        freeze=(("connector/projection/.*", False), (".*", True)),
    )
    config.schedule = dict(name="cosine", peak=1e-4 if args.stage == 1 else 3e-5, warmup="5%")
    config.evals = dict(held_out=dict(type="perplexity", at_start=True, every="50%"))
    config.checkpoint = dict(every="25%", keep_last=1)
    config.log = dict(every=1 if args.debug else 10)
    return arguments.apply(args, config)
