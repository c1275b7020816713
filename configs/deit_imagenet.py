"""DeiT on ImageNet-1k, 300 epochs from scratch (Touvron et al. 2021, table 9), with a teacher or without.

    python scripts/train.py --config=configs/deit_imagenet.py:S/16 --workdir=gs://bucket/deit_s
    python scripts/train.py --config=configs/deit_imagenet.py:S/16,teacher=PATH --workdir=gs://bucket/deit_s_distilled

PATH is a folder of weights of any classifier with the same 1000 classes that `pretrained.load` reads; with it the model
has a distillation token, which learns the teacher's decisions (`distillation=soft` for its distribution, with the
paper's temperature 3 and weight 0.1). ImageNet is read from a prepared TFDS directory (ArrayRecord), or from class
folders: `:S/16,source=folder:PATH`.

Published: 72.2 % (Ti/16), 79.9 % (S/16), 81.8 % (B/16) top-1; with a RegNetY-16GF as teacher 74.5, 81.2 and 83.4 %. It
was not run here. One part of the recipe is left out: repeated augmentation, as an epoch here holds every image once.
"""

from ml_collections import ConfigDict

from vitvlm.core import arguments

DISTILLATION = {"hard": dict(weight=0.5), "soft": dict(weight=0.1, temperature=3.0)}


def get_config(arg: str = "") -> ConfigDict:
    args = arguments.training(arg, variant="S/16", source="", teacher="", distillation="hard", debug=False)
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps" if args.debug else "300 epochs"
    config.batch_size = 8 if args.debug else 1024
    config.image_size = 32 if args.debug else 224
    size = config.get_ref("image_size")

    config.task = dict(name="classify", label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    if args.teacher:
        own = DISTILLATION.get(args.distillation, {})
        config.task.distillation = dict(teacher=args.teacher, kind=args.distillation, **own)
    config.model = dict(
        name="deit" if args.teacher else "vit",
        variant=args.variant,
        image_size=size,
        num_classes="data" if args.debug else 1000,
        drop_path=0.1,
        dtype="float32" if args.debug else "bfloat16",
        scan=True,
    )
    if args.debug:
        config.model.update(width=24, depth=2, heads=3, mlp_width=48)

    crop = "decode(3)|random_resized_crop(" + size.to_str() + ")|flip"
    whole = "decode(3)|resize_small(256, 'bicubic')|central_crop(" + size.to_str() + ")|normalize('imagenet')"
    config.data = dict(
        source=args.source or ("emoji" if args.debug else "tfds:imagenet2012"),
        train=dict(split="train", ops=crop + "|randaugment(2, 9, 0.5)|normalize('imagenet')|random_erasing(0.25)"),
        eval=dict(split="test[:16]" if args.debug else "validation", ops=whole),
        workers=0 if args.debug else 16,
    )

    config.optimizer = dict(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05)
    config.schedule = dict(name="cosine", peak=5e-4, base_batch=512, warmup=0 if args.debug else "5 epochs")
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = "replicated"
    config.evals = dict(val=dict(type="classification", every="10 epochs"))
    config.checkpoint = dict(every="5 epochs", keep_last=2, best="val/top1")
    config.log = dict(every=1 if args.debug else 50)
    return arguments.apply(args, config)
