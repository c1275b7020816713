"""Early, mid and late fusion on procedural scenes: where image and text meet, judged by hard negatives of captions.

    python scripts/ablate.py --config=configs/ablations/fusion.py --workdir=workdirs/fusion

Early: patches stand before the text from the first layer, there is no image encoder. Mid: blocks of the language model
look at an image encoder's tokens by cross-attention. Late: two towers, which meet in one product. All learn the same
captions of the same scenes from nothing, in transformers of one size, of which early has one and the others two. Early
and mid tell the right caption by its likelihood, late by cosine.
`:debug` is the same sweep at toy size. `--config.budget.train="20 epochs"` sets another budget for all.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

SMALL, TINY = (  # as configs/vlm_scenes.py has them
    dict(width=192, depth=6, heads=6, mlp_width=768),
    dict(width=24, depth=2, heads=2, mlp_width=32),
)
AT_THE_END = dict(
    compositionality=dict(every=None), retrieval=None, geometry=None, count_by_image=None, count_by_text=None
)


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.parse(arg, debug=False)
    config = ConfigDict()
    config.title = "Early, mid and late fusion of image and text"
    config.question = (
        "Must image and text meet early to tell which thing has which colour and where it stands? Two towers compare "
        "one vector each and are known for reading bags of words (Yuksekgonul et al. 2023)."
    )
    config.axis = "fusion (early, mid, late)"
    config.budget = dict(train="4 steps" if args.debug else "10 epochs")
    debug = ",debug" * args.debug
    captions = f"configs/vlm_scenes.py:parts=small,learn=captions{debug}"
    scenes = "scenes:side=64,train=16,test=8" if args.debug else "scenes:side=64"
    size = TINY if args.debug else SMALL
    towers = dict(image=size, text=size, embed_dim=size["width"])
    data = dict(source=scenes, train=dict(split="train"), eval=dict(split="test"))
    config.stages = (
        dict(
            name="train",
            base=captions,
            overrides=dict(batch_size=8 if args.debug else 64, data=data),
            label="training",
        ),
    )
    config.variants = (
        dict(name="early", bases=dict(train=f"{captions},connector=none"), overrides={}),
        dict(name="mid", bases=dict(train=f"{captions},connector=cross_attention"), overrides={}),
        dict(
            name="late",
            bases=dict(train="configs/clip_scenes.py" + ":debug" * args.debug),
            overrides=dict(train=dict(model=towers, evals=AT_THE_END)),
        ),
    )
    kinds = ("all_kinds", "swap_attribute", "swap_relation", "replace_attribute", "replace_thing")
    config.scores = tuple(dict(label=kind.replace("_", " "), metric=f"train.compositionality/{kind}") for kind in kinds)
    return config
