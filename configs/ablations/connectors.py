"""Connectors x image tokens: questions about scenes, between a frozen ViT-S/14 and SmolLM2-135M with LoRA.

    python scripts/ablate.py --config=configs/ablations/connectors.py --workdir=workdirs/connectors

`seeds=3` trains each three times, which are rows of their own. `tokens=64` leaves the other numbers of tokens out.
`:debug` is the same sweep at toy size, and needs no weights; `configs/vlm_scenes.py` says how to link them.
`--config.budget.train="2 epochs"` sets another budget for all.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

CONNECTORS = ("linear", "mlp", "pixel_shuffle", "qformer", "resampler", "gated_cross_attention")


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, seeds=1, tokens=0, epochs=1, debug=False)
    config = ConfigDict()
    config.title = "Connectors and image tokens of a vision-language model"
    config.question = (
        "How should an image reach a language model, and in how many tokens? All see the same 256 features of one "
        "frozen encoder: a linear map or an MLP of their means over squares (LLaVA), the squares put into channels "
        "(SmolVLM), queries among the text (BLIP-2, the resampler), or queries that gated blocks look at (Flamingo)."
    )
    config.axis = "image tokens"
    config.budget = dict(train="4 steps" if args.debug else f"{args.epochs} epochs")
    debug = ",debug" * args.debug
    config.stages = (dict(name="train", base=f"configs/vlm_scenes.py:connector=mlp{debug}"),)
    connectors = ("pixel_shuffle", "gated_cross_attention") if args.debug else CONNECTORS
    counts = (4,) if args.debug else (args.tokens,) if args.tokens else (16, 64, 256)
    config.variants = tuple(
        dict(
            name=f"{connector}_{tokens}" + f"_seed_{seed}" * (args.seeds > 1),
            value=float(tokens),
            line=connector,
            bases=dict(train=f"configs/vlm_scenes.py:connector={connector},tokens={tokens}{debug}"),
            overrides=dict(train=dict(seed=seed)) if args.seeds > 1 else {},
        )
        for connector in connectors
        for tokens in counts
        for seed in range(args.seeds)
    )
    config.scores = (
        dict(label="accuracy", metric="train.answers/accuracy"),
        dict(label="mean over types of question", metric="train.answers/mean_type_accuracy"),
        dict(label="lost with another's image", metric="train.answers/grounding_swapped_drop"),
        dict(label="lost without the image", metric="train.answers/grounding_blind_drop"),
    )
    return config
