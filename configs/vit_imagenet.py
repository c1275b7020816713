"""ViT on ImageNet-1k, 300 epochs from scratch, with the recipe of DeiT (Touvron et al. 2021, table 9).

    python scripts/train.py --config=configs/vit_imagenet.py:S/16 --workdir=gs://bucket/vit_s16

ImageNet is read from a prepared TFDS directory (ArrayRecord), or from class folders: `:S/16,source=folder:PATH`.
Published for this recipe: 72.2 % (Ti/16), 79.9 % (S/16), 81.8 % (B/16) top-1. It was not run here.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, variant="S/16", source="", debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else "300 epochs"
    config.batch_size = 8 if args.debug else 1024
    config.image_size = 32 if args.debug else 224
    size = config.get_ref("image_size")

    config.task = dict(name="classify", label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    config.model = dict(
        name="vit",
        variant=args.variant,
        image_size=size,
        num_classes="data" if args.debug else 1000,
        pool="cls",
        drop_path=0.1,
        dtype="float32" if args.debug else "bfloat16",
        remat="none",
        scan=True,
    )
    if args.debug:
        config.model.update(width=24, depth=2, heads=3, mlp_width=48)

    train = "decode(3)|random_resized_crop(" + size.to_str() + ")|flip|randaugment(2, 9)|normalize('imagenet')"
    evaluate = "decode(3)|resize_small(256)|central_crop(" + size.to_str() + ")|normalize('imagenet')"
    config.data = dict(
        source=args.source or ("emoji" if args.debug else "tfds:imagenet2012"),
        train=dict(split="train", ops=train + "|random_erasing(0.25)"),
        eval=dict(split="test[:16]" if args.debug else "validation", ops=evaluate),
        workers=0 if args.debug else 16,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05)
    config.schedule = dict(name="cosine", peak=1e-3, base_batch=1024, warmup=0 if args.debug else "5 epochs")
    config.ema_decay = 0.99996
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = "replicated"
    config.evals = dict(val=dict(type="classification", every="10 epochs"))
    config.checkpoint = dict(every="5 epochs", keep_last=2, best="val/top1")
    config.log = dict(every=1 if args.debug else 50, tensorboard=False)
    return arguments.apply(args, config)
