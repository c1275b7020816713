"""The shapes that signatures state are true: every model is traced with all annotations checked as it runs."""

import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook("vitvlm", "beartype.beartype"):
    from vitvlm import models
    from vitvlm.nn.patches import patchify

VIT = dict(width=8, depth=2, heads=2, mlp_width=12, patch_size=(2, 3), image_size=(4, 9))
SWIN = dict(width=8, depths=(2, 1, 1), heads=(2, 2, 4), window=2, patch_size=(2, 1))
QWEN = dict(width=8, depth=2, heads=2, mlp_width=12, patch_size=(2, 3))
SIZES = dict(vit=VIT, deit=VIT, mae=VIT, swin=SWIN, qwen_vit=QWEN)
images = jnp.ones((2, 8, 6, 3))
rngs = {name: jax.random.key(0) for name in ("params", "mask", "dropout")}
everything = dict(train=True, capture=("hidden", "attention"))
RUNS = [
    ("vit", dict(registers=2, num_classes=3, layer_scale=0.1, drop_path=0.1, dropout=0.1, remat="dots")),
    ("vit", dict(pool="map", positions="sincos", representation_size=5, num_classes=3, scan=False)),
    ("vit", dict(pool="gap", positions="none")),
    ("vit", dict(pool="cls_and_gap", mlp="swiglu", position_antialias=True, num_classes=3)),
    ("deit", dict(num_classes=3, registers=1)),
    ("mae", dict(decoder_width=8, decoder_depth=1, decoder_heads=2)),
    ("mae", dict(decoder_width=8, decoder_depth=1, decoder_heads=2, masking="block", positions="learned")),
    ("mae", dict(decoder_width=8, decoder_depth=1, decoder_heads=2, masking="grid", norm_pix=False)),
    ("vit", dict(pre_norm=True, norm_pooled=True, patch_bias=False, crop=True)),
    ("qwen_vit", dict(merge=1, num_classes=3, drop_path=0.1, dropout=0.1)),
    ("swin", dict(num_classes=3, drop_path=0.1, dropout=0.1, remat="dots")),
    ("swin", dict(positions="learned", image_size=(4, 6), always_partition=True)),
]
for name, fields in RUNS:
    model = models.build(name, **SIZES[name], **fields)
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, images, **everything)))

RESNET = dict(widths=(8, 12), depths=(2, 1), stem_width=4)
STAGES = dict(widths=(16, 24, 40), depths=(1, 2, 1), kernels=(3, 5, 3), strides=(1, 2, 2), expansions=(1, 6, 6))
RUNS = [
    ("resnet", dict(RESNET, num_classes=3)),
    ("resnet", dict(RESNET, layer="basic")),
    ("efficientnet", dict(STAGES, num_classes=3, drop_path=0.1, dropout=0.1)),
    ("fpn", dict(backbone=dict(RESNET, name="resnet"), width=6, extra_levels=1)),
    ("fpn", dict(backbone=dict(VIT, name="vit"), width=6)),
    ("fpn", dict(backbone=dict(SWIN, name="swin"), width=6)),
    ("multiscale", dict(backbone=dict(SWIN, name="swin"), width=8, depth=1, heads=2, mlp_width=12, num_classes=3)),
]
for name, fields in RUNS:
    model = models.build(name, **fields)
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, images, train=True, capture=("hidden",))))

texts, mask = jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), jnp.int32)
TEXT = dict(width=8, depth=2, heads=2, mlp_width=12, vocab_size=9, length=6)
model = models.build("text", **TEXT, projection=3, dropout=0.1, drop_path=0.1, remat="dots")
jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, texts, mask, **everything)))
SENTENCES = dict(width=8, depth=2, heads=2, mlp_width=12, vocab_size=9, length=6)
for fields in [dict(dropout=0.1), dict(pool="mean", remat="dots"), dict(pool="first", pooler=True, scan=False)]:
    model = models.build("bert", **SENTENCES, **fields)
    run = lambda: jax.tree.leaves(model.init_with_output(rngs, texts, mask, segment_ids=mask, **everything))
    jax.eval_shape(run)
for name, fields in [("bert_decoder", dict(dropout=0.1)), ("bert", dict(pool="mean", scan=False, mlm_head=True))]:
    model = models.build(name, **SENTENCES, context_width=3, **fields)
    given = dict(everything, context=jnp.ones((2, 4, 3)), context_mask=jnp.ones((2, 4), jnp.int32), segment_ids=mask)
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, texts, mask, **given)))
for asked in ("last", "none"):
    model = models.build("bert_decoder", **SENTENCES)
    given = dict(cache=model.empty_cache(2, 6), logits=asked)
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, texts, **given)))
GEMMA = dict(pattern=("local", "global"), local=2, norms="sandwich", qk_norm=True, scale_embed=True, tied=True)
OPT = dict(positions="learned", position_offset=2, embed_width=4, norm="layer", mlp="plain", head_bias=True)
for fields in [dict(dropout=0.1), dict(GEMMA, soft_cap=2.0, logit_soft_cap=3.0, remat="dots"), dict(OPT, scan=False)]:
    model = models.build("decoder", **SENTENCES, **fields)
    run = lambda: jax.tree.leaves(model.init_with_output(rngs, texts, mask, **everything))
    jax.eval_shape(run)
    run = lambda **how: jax.tree.leaves(model.init_with_output(rngs, texts, cache=model.empty_cache(2, 6), **how))
    jax.eval_shape(lambda: run(logits="last", capture=("attention",)))
    jax.eval_shape(lambda: run(logits="none", attention_mask=jnp.ones((1, 1, 5, 6), bool)))
T5 = dict(width=8, depth=2, heads=2, mlp_width=12, vocab_size=9, dropout=0.1)
for fields in [dict(), dict(mlp="gated", tied=False, scale_logits=False, decoder_depth=1, scan=False, remat="dots")]:
    model = models.build("t5", **T5, **fields)
    for asked in ("all", "last", "none"):
        given = dict(everything, decoder_tokens=texts, decoder_mask=mask == 1, logits=asked)
        jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, texts, mask, **given)))
    given = dict(cache=model.empty_cache(2, 3), decoder_tokens=texts[:, :2])
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, texts, mask, **given)))
towers = dict(image=dict(VIT, name="vit"), text=dict(TEXT, name="text", causal=False, pool="last"), embed_dim=4)
RUNS = [dict(image_projection="mlp"), dict(bias_init=0.0, scan=False), dict(embed_dim=8, text_projection="none")]
for fields in RUNS:
    model = models.build("two_towers", **towers | fields)
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, images, texts[:1], mask[:1], **everything)))
    jax.eval_shape(lambda: model.init_with_output(rngs, texts, mask == 1, method=model.encode_text))
    jax.eval_shape(lambda: model.init_with_output(rngs, images, method=model.encode_image))
COCA = dict(queries=3, pool_heads=2, decoder_depth=2, decoder_heads=2)
towers |= dict(text=dict(TEXT, name="text", pool="cls", norm_pooled=True, late_mask=True, dropout=0.1))
RUNS = [dict(pooling="joint", remat="dots"), dict(pooling="cascade", scan=False, pad_id=1), dict(pooling="none")]
for fields in RUNS:
    model = models.build("coca", **towers | COCA | fields)
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, images, texts, mask, **everything)))
    jax.eval_shape(lambda: model.init_with_output(rngs, texts[:1], mask[:1] == 1, method=model.encode_text))
    jax.eval_shape(lambda: model.init_with_output(rngs, images, method=model.encode_image))
    variables = jax.eval_shape(lambda: model.init(rngs, images, texts))
    caption = dict(start=1, end=2, length=4, method=model.caption)
    jax.eval_shape(lambda v: model.apply(v, images, **caption), variables)
QFORMER = dict(width=8, depth=3, heads=2, mlp_width=12, queries=3, vocab_size=9, length=6, lm_head=True)
for fields in [dict(start_id=2), dict(scan=False, scale_init=None)]:
    model = models.build("blip2_qformer", image=towers["image"], qformer=QFORMER, **fields)
    for given in (dict(everything), dict(everything, logits=False)):
        jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, images, texts, mask, **given)))
    variables = jax.eval_shape(lambda: model.init(rngs, images, texts))
    jax.eval_shape(lambda v: jax.tree.leaves(model.apply(v, images, texts[:1], mask[:1] == 1)), variables)
    jax.eval_shape(lambda v: model.apply(v, images, texts, mask, method=model.match_images), variables)
    jax.eval_shape(lambda v: model.apply(v, texts, mask, method=model.encode_text), variables)
    jax.eval_shape(lambda v: model.apply(v, images, method=model.encode_image), variables)
BLIP = dict(image=dict(VIT, name="vit"), text=dict(TEXT, dropout=0.1))
for name, fields in [("blip", dict(embed_dim=4, encode_id=3)), ("blip_captioner", dict(scan=False)), ("blip_vqa", {})]:
    model = models.build(name, **BLIP | fields, start_id=1, stop_id=2)
    run = lambda **how: jax.tree.leaves(model.init_with_output(rngs, images, texts, mask, **how))
    jax.eval_shape(lambda: run(**everything, image_mask=jnp.ones((2, 1))))
    jax.eval_shape(lambda: run(logits="none"))
    room = {} if name == "blip_vqa" else dict(mask=jnp.ones((2, 6), bool))
    given = dict(images=images, text_tokens=texts, logits="last", **room)
    jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, cache=model.empty_cache(2, 6), **given)))
model = models.build("blip_retrieval", **BLIP, embed_dim=4, scale_init=None)
jax.eval_shape(lambda: jax.tree.leaves(model.init_with_output(rngs, images, texts, mask, **everything)))
variables = jax.eval_shape(lambda: model.init(rngs, images, texts))
calls = [(model.encode_image, (images,)), (model.encode_text, (texts[:1], mask[:1])), (model.see, (images,))]
for call, given in calls:
    jax.eval_shape(lambda v: model.apply(v, *given, method=call), variables)
looked = lambda v: model.apply(v, jnp.ones((2, 3, 8)), texts, mask, method=model.match)
jax.eval_shape(looked, variables)
try:
    patchify(images[0], (2, 3))
except TypeCheckError:
    print("checked")
"""


def test_annotations_hold():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "checked"
