"""BLIP: a text side that is compared with images, looks at them and writes about them, learned together or for answers.

    python scripts/train.py --config=configs/blip.py --workdir=workdirs/blip
    python scripts/train.py --config=configs/blip.py:learn=questions --workdir=workdirs/blip_questions

`learn` is pairs, emoji and their English names by all three objectives of pre-training, judged by retrieval, by vectors
alone and with the nearest put in order by matching; captions, the names by writing alone; or questions, those about
scenes, of which the answers are written.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest

LENGTH, QUESTION, ANSWER = 32, 48, 8
KINDS = ("pairs", "captions", "questions")
WORDS = 2000  # of the tokenizer; behind them come [DEC] and [ENC]
EOS = 2


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, learn="pairs", epochs=60, scenes=10_000, debug=False)
    if args.learn not in KINDS:
        raise ConfigError(f"config argument learn={args.learn}: {suggest(args.learn, KINDS)}")
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 128
    config.image_size = 32 if args.debug else 64
    size = config.get_ref("image_size")

    width, depth, heads = (24, 2, 3) if args.debug else (128, 4, 4)
    sizes = dict(width=width, depth=depth, heads=heads, mlp_width=4 * width)
    asks = args.learn == "questions"
    names = dict(pairs="blip", captions="blip_captioner", questions="blip_vqa")
    config.model = dict(
        name=names[args.learn],
        image=dict(name="vit", patch_size=8, image_size=size, positions="sincos", drop_path=0.1, **sizes),
        text=dict(vocab_size=WORDS + 2, length=QUESTION if asks else LENGTH, dropout=0.1, **sizes),
        start_id=WORDS,
        stop_id=EOS,
        scan=False,
    )
    if args.learn != "captions":
        config.model.encode_id = WORDS + 1
    if args.learn == "pairs":
        config.model.embed_dim = width
    config.task = dict(name="next_token" if asks else "blip")
    if args.learn == "pairs":
        config.task.update(queue_size=16 if args.debug else 1024, alpha_ramp="2 epochs")

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|normalize('half')"
    whole = "decode(3)|resize(" + size.to_str() + ")|normalize('half')"
    if asks:
        counts = "train=16,test=4" if args.debug else f"train={args.scenes}"
        texts = f"|supervise('emoji', {QUESTION}, 'question', 'answer', answer_length={ANSWER})"
        data = dict(source=f"scenes:ask,{counts}", train=dict(split="train", ops=whole + texts))
        config.data = dict(**data, eval=dict(split="test", ops=whole + texts), workers=0)
    else:
        texts = f"|tokenize('emoji', {LENGTH}, 'name')"
        config.data = dict(
            source="emoji",
            train=dict(split="train[:64]" if args.debug else "train", ops=crop + texts),
            eval=dict(split="test[:16]" if args.debug else "test", ops=whole + texts),
            workers=0,
        )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.98, weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", peak=1e-3, warmup="10%")
    config.evals = dict(
        pairs=dict(english=dict(type="retrieval", rerank=16, every="25%")),
        captions=dict(features=dict(type="features")),
        questions=dict(held_out=dict(type="perplexity", every="25%")),
    )[args.learn]
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)
