"""MAE pre-training on Fashion-MNIST, judged by linear probes of the encoder.

    python scripts/train.py --config=configs/mae_fashion.py --workdir=workdirs/mae_fashion

The same probe on random weights and on raw pixels runs beside it; `finetune_fashion.py` starts from the result.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else "12 epochs"
    config.batch_size = 8 if args.debug else 256
    config.image_size = 28
    size = config.get_ref("image_size")

    config.task = dict(name="reconstruct")
    config.model = dict(
        name="mae",
        width=16 if args.debug else 128,
        depth=2 if args.debug else 4,
        heads=2 if args.debug else 4,
        mlp_width=32 if args.debug else 512,
        decoder_width=16 if args.debug else 64,
        decoder_depth=1,
        decoder_heads=2,
        patch_size=4,
        image_size=size,
        mask_ratio=0.75,
        scan=False,
    )

    evaluate = "decode(1)|resize(" + size.to_str() + ")|normalize('fashion_mnist')"
    config.data = dict(
        source="tfds:fashion_mnist",
        train=dict(
            split="train[:1%]" if args.debug else "train",
            ops="decode(1)|random_crop(" + size.to_str() + ", padding=2)|flip|normalize('fashion_mnist')",
        ),
        eval=dict(split="test[:1%]" if args.debug else "test", ops=evaluate),
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.schedule = dict(name="cosine", peak=2e-3, base_batch=256, warmup="5%")
    probe = dict(type="linear_probe_logistic", features="pooled_and_token_mean")
    config.evals = dict(
        reconstruction=dict(type="reconstruction", every="25%"),
        probe=dict(probe),
        probe_random=dict(probe, weights="random"),
        probe_pixels=dict(probe, features="pixels"),
        knn=dict(type="knn", features="token_mean"),
    )
    config.checkpoint = dict(every="10%", keep_last=1)
    config.log = dict(every=1 if args.debug else 50)
    return arguments.apply(args, config)
