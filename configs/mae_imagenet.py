"""MAE pre-training on ImageNet-1k, 800 epochs (He et al. 2022, table 8).

    python scripts/train.py --config=configs/mae_imagenet.py:B/16 --workdir=gs://bucket/mae_b16

`configs/mae_imagenet_finetune.py` starts from the result. Published after fine-tuning: 83.6 % (B/16, 1600 epochs),
85.9 % (L/16). It was not run here.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, variant="B/16", source="", debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else "800 epochs"
    config.batch_size = 8 if args.debug else 4096
    config.image_size = 32 if args.debug else 224
    size = config.get_ref("image_size")

    config.task = dict(name="reconstruct")
    config.model = dict(
        name="mae",
        variant=args.variant,
        image_size=size,
        mask_ratio=0.75,
        masking="random",
        norm_pix=True,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        dtype="float32" if args.debug else "bfloat16",
        scan=True,
    )
    if args.debug:
        sizes = dict(width=24, depth=2, heads=3, mlp_width=48, decoder_width=16, decoder_depth=1, decoder_heads=2)
        config.model.update(sizes)

    config.data = dict(
        source=args.source or ("emoji" if args.debug else "tfds:imagenet2012"),
        train=dict(
            split="train",
            ops="decode(3)|random_resized_crop(" + size.to_str() + ", scale=(0.2, 1.0))|flip|normalize('imagenet')",
        ),
        eval=dict(
            split="test[:16]" if args.debug else "validation",
            ops="decode(3)|resize_small(256)|central_crop(" + size.to_str() + ")|normalize('imagenet')",
        ),
        workers=0 if args.debug else 16,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.schedule = dict(name="cosine", peak=1.5e-4, base_batch=256, warmup=0 if args.debug else "40 epochs")
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = "fsdp"
    config.evals = dict(reconstruction=dict(type="reconstruction", every="100 epochs"))
    config.checkpoint = dict(every="10 epochs", keep_last=2)
    config.log = dict(every=1 if args.debug else 50)
    return arguments.apply(args, config)
