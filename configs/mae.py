"""MAE pre-training on any images, small enough for a laptop; by default on the embedded emoji set.

    python scripts/train.py --config=configs/mae.py --workdir=workdirs/mae
    python scripts/train.py --config=configs/mae.py:folder:PATH,variant=S/16,image_size=224 --workdir=workdirs/mine

PATH holds images, in one directory per class or without any; without classes, there is no probe.
`configs/vit.py:init=WORKDIR` fine-tunes the result.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, source="emoji", test="test", variant="", image_size=64, epochs=24, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else f"{args.epochs} epochs"
    config.batch_size = 8 if args.debug else 64
    config.image_size = 32 if args.debug else args.image_size
    size = config.get_ref("image_size")

    config.task = dict(name="reconstruct")
    config.model = dict(
        name="mae",
        image_size=size,
        mask_ratio=0.75,
        decoder_width=64,
        decoder_depth=2,
        decoder_heads=2,
        scan=False,
    )
    if args.debug:
        config.model.update(width=24, depth=2, heads=3, mlp_width=48, patch_size=8, decoder_width=16)
    elif args.variant:
        config.model.update(variant=args.variant)
    else:
        config.model.update(width=128, depth=4, heads=4, mlp_width=512, patch_size=8)

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.5, 1.0))|flip|normalize('half')"
    whole = "decode(3)|resize_small(" + size.to_str() + ")|central_crop(" + size.to_str() + ")|normalize('half')"
    config.data = dict(
        source=args.source,
        train=dict(split="train[:64]" if args.debug else "train", ops=crop),
        eval=dict(split=args.test + "[:16]" * args.debug, ops=whole),
        workers=0,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.schedule = dict(name="cosine", peak=4e-3, base_batch=256, warmup="5%")
    probe = dict(type="linear_probe_logistic", features="pooled_and_token_mean", if_labelled=True)
    config.evals = dict(
        reconstruction=dict(type="reconstruction", every="25%"),
        probe=dict(probe),
        probe_random=dict(probe, weights="random"),
    )
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 20)
    return arguments.apply(args, config)
