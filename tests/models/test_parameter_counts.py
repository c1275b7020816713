"""Parameter counts at full size equal the published ones; nothing is computed."""

import jax
import jax.numpy as jnp
import pytest

from vitvlm import models
from vitvlm.models.qformer import BASE, QFormer


def count(model) -> int:
    keys = {"params": jax.random.key(0), "mask": jax.random.key(0)}
    shapes = jax.eval_shape(model.init, keys, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    "variant, parameters",
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("S/32", 22_878_952),
        ("B/32", 88_224_232),
        ("B/16", 86_567_656),
        ("B/8", 86_576_872),
        ("L/16", 304_326_632),
        ("H/14", 632_045_800),
    ],
)
def test_vit(variant, parameters):
    assert count(models.build("vit", variant=variant, num_classes=1000)) == parameters


@pytest.mark.parametrize("variant, parameters", [("Ti/16", 5_910_800), ("S/16", 22_436_432), ("B/16", 87_338_192)])
def test_distilled_deit(variant, parameters):
    assert count(models.build("deit", variant=variant, num_classes=1000)) == parameters


@pytest.mark.parametrize(
    "variant, parameters", [("T", 28_288_354), ("S", 49_606_258), ("B", 87_768_224), ("L", 196_532_476)]
)
def test_swin(variant, parameters):
    assert count(models.build("swin", variant=variant, num_classes=1000)) == parameters


def test_vit_g_has_the_1011_million_of_the_papers_table():
    assert round(count(models.build("vit", variant="g/14")) / 1e6) == 1011


@pytest.mark.parametrize(
    "variant, parameters, fixed_positions",
    [
        ("B/16", 111_907_840, 197 * (768 + 512)),
        ("L/16", 329_541_888, 197 * (1024 + 512)),
        ("H/14", 657_074_508, 257 * (1280 + 512)),
    ],
)
def test_mae(variant, parameters, fixed_positions):
    """The published counts hold the fixed tables of encoder and decoder, which are constants here."""
    assert count(models.build("mae", variant=variant)) + fixed_positions == parameters


@pytest.mark.parametrize(
    "variant, parameters",
    [("18", 11_689_512), ("34", 21_797_672), ("50", 25_557_032), ("101", 44_549_160), ("152", 60_192_808)],
)
def test_resnet(variant, parameters):
    assert count(models.build("resnet", variant=variant, num_classes=1000)) == parameters


@pytest.mark.parametrize(
    "variant, parameters",
    [
        ("B0", 5_288_548),
        ("B1", 7_794_184),
        ("B2", 9_109_994),
        ("B3", 12_233_232),
        ("B4", 19_341_616),
        ("B5", 30_389_784),
        ("B6", 43_040_704),
        ("B7", 66_347_960),
    ],
)
def test_efficientnet(variant, parameters):
    assert count(models.build("efficientnet", variant=variant, num_classes=1000)) == parameters


def test_fpn():
    """On ResNet-50: four 1x1 convolutions to 256 and four 3x3 ones."""
    added = (256 + 512 + 1024 + 2048 + 4) * 256 + 4 * (9 * 256 + 1) * 256
    backbone = {"name": "resnet", "variant": "50", "num_classes": 1000}
    assert count(models.build("fpn", backbone=backbone, width=256, extra_levels=1)) == 25_557_032 + added


@pytest.mark.parametrize(
    "variant, parameters", [("base", 109_482_240), ("large", 335_141_888), ("MiniLM-L6", 22_713_216)]
)
def test_bert(variant, parameters):
    """With the pooler."""
    texts = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    shapes = jax.eval_shape(models.build("bert", variant=variant).init, jax.random.key(0), texts)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_qwen2_vls_image_encoder_has_as_many_as_the_reference_without_its_connector():
    """The class of `transformers` at the published size has 665,271,296, 34,085,376 of them in its merger's maps."""
    model = models.build("qwen_vit", width=1280, depth=32, heads=16, mlp_width=5120, patch_size=14)
    assert count(model) == 665_271_296 - (5120 * 5120 + 5120 + 5120 * 1536 + 1536) == 631_185_920


@pytest.mark.parametrize("vision, parameters", [(1408, 105_137_664), (1024, 101_598_720)])
def test_qformer(vision, parameters):
    """BERT-base's size with cross-attention in every other block; the published count has no queries and no texts."""
    model, queries = QFormer(**BASE), 32 * 768
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 257, vision), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) - queries == parameters


@pytest.mark.parametrize(
    "variant, side, parameters",
    [
        ("PaliGemma-3B-224", 224, 2_923_466_480),
        ("nanoVLM-222M", 224, 222_081_600),
        ("nanoVLM-228M", 512, 228_063_936),
        ("Idefics3-8B", 364, 8_462_086_384),
        ("LLaVA-NeXT-Vicuna-7B", 336, 7_063_431_168),
        ("LLaVA-NeXT-Mistral-7B", 336, 7_566_747_648),
        ("Qwen2-VL-2B", 28, 2_208_985_600),
        ("Qwen2-VL-7B", 28, 8_291_375_616),
    ],
)
def test_vlms_that_put_images_among_texts(variant, side, parameters):
    """nanoVLM's are published; the others are those of the classes of `transformers` at the published sizes."""
    model = models.build("vlm", variant=variant)
    image, text = jnp.zeros((1, 1, side, side, 3)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda key: model.init(key, image, text, image_index=text - 1), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters
