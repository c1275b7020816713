"""Records with images of any shapes, placed by M-RoPE: padded, packed, and read by a Qwen2-VL without a leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import tiny_bpe
from vitvlm import models
from vitvlm.data import operations
from vitvlm.data.operations.pack import pack
from vitvlm.nn.patches import Patches

ROOM = 6  # image tokens that an image has room for
OPS = (
    f"smart_resize(4, 16, {ROOM * 16}, field='images')|normalize(field='images')|merge_patches(2, {4 * ROOM})"
    "|pad('images', 2)|supervise('hf:{folder}', 40, image_tokens=6, image_token='<|image_pad|>')|mrope"
)
SHAPES = [[(8, 12), (4, 4)], [(13, 5)], [(4, 20), (8, 8)]]
NAMES = ("images", "images_patch_mask", "images_patch_grid", "image_times", "image_mask", "image_index")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tiny_bpe.write(tmp_path_factory.mktemp("tokens"), (*tiny_bpe.TURNS, "<|image_pad|>"))
    rng = np.random.default_rng(0)
    made = []
    for i, shapes in enumerate(SHAPES):
        images = [rng.integers(256, size=(*shape, 3), dtype=np.uint8) for shape in shapes]
        example = {
            "id": str(i),
            "images": images,
            "prompt": "the cat " + "<image> on " * len(images),
            "output": "a mat",
        }
        made.append(operations.parse(OPS.format(folder=folder))(example))
    return made


@pytest.fixture(scope="module")
def built():
    """Returns the model and its variables."""
    sizes = {"depth": 2, "heads": 2, "mlp_width": 12}
    model = models.build(
        "vlm",
        image={"name": "qwen_vit", "width": 8, "patch_size": 2, **sizes},
        connector={"name": "mlp", "hidden": 32},
        text={"name": "decoder", "width": 16, "vocab_size": 320, "length": 64, **sizes}
        | {"rope": {"axes": (0, 1, 1, 2), "base": 100.0}},
    )
    inputs = jnp.zeros((1, 1, 4, 4, 3)), jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(lambda key: model.init(key, *inputs, image_index=jnp.full((1, 2), -1)))
    return model, init(jax.random.key(0))


def call(model, variables, rows, positions=True):
    """Logits of rows of records."""
    batch = {name: jnp.stack([row[name] for row in rows]) for name in (*NAMES, "text_tokens", "text_mask")}
    images = batch.pop("images")
    patches = Patches(
        images.reshape(*images.shape[:3], -1), batch.pop("images_patch_mask"), batch.pop("images_patch_grid")
    )
    mask = batch.pop("text_mask")
    given = {"positions": jnp.stack([row["text_positions"] for row in rows])} if positions else {}
    if "text_segments" in rows[0]:
        segments = jnp.stack([row["text_segments"] for row in rows])
        given["attention_mask"] = (segments[:, :, None] == segments[:, None, :])[:, None]
    return model.apply(variables, patches, mask=mask, **batch, **given).logits


def test_padding_and_positions(records):
    """An image has its own grid; its tokens stand in order; text goes on behind the larger side."""
    first = records[0]
    assert first["images"].shape == (2, 4 * ROOM, 4, 3) and first["image_mask"].tolist() == [1, 1]
    assert first["images_patch_grid"].tolist() == [[4, 6], [2, 2]]
    assert records[1]["images_patch_grid"][1].tolist() == [0, 0]
    index, positions = first["image_index"], first["text_positions"]
    assert index[index >= 0].tolist() == [*range(6), ROOM]
    begins = int(np.argmax(index >= 0))
    expected = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2], [3, 3, 3]]
    assert (positions[begins : begins + 7] - begins).tolist() == expected


def test_the_model_finds_the_same_positions(records, built):
    model, variables = built
    run = jax.jit(lambda positions: call(model, variables, records, positions), static_argnums=0)
    real = np.stack([record["text_mask"] for record in records]) > 0
    np.testing.assert_allclose(run(True)[real], run(False)[real], atol=1e-6)


def test_a_packed_row_is_its_records_and_does_not_leak(records, built):
    """Logits are those of the records alone; changing another record's image or text changes not a bit of them."""
    model, variables = built
    row = pack({"@members": records, "id": "all"}, 120, images=6)
    assert row["image_mask"].sum() == 5 and row["images_patch_grid"][:5].min() > 0
    given = {name: np.asarray(value) for name, value in row.items() if isinstance(value, np.ndarray)}
    run = jax.jit(lambda given: call(model, variables, [given]))
    packed = run(given)[0]
    alone = call(model, variables, records)
    start = 0
    for i, record in enumerate(records):
        count = int(record["text_mask"].sum())
        np.testing.assert_allclose(packed[start : start + count], alone[i, :count], atol=1e-5)
        start += count
    first, second = (int(records[i]["text_mask"].sum()) for i in (0, 1))
    changed = dict(given)
    changed["images"] = given["images"].copy()
    changed["images"][2] += 1.0  # of the second record
    changed["text_tokens"] = given["text_tokens"].copy()
    changed["text_tokens"][first] += 1
    other = run(changed)[0]
    np.testing.assert_array_equal(other[:first], packed[:first])
    np.testing.assert_array_equal(other[first + second : start], packed[first + second : start])
    assert np.abs(other - packed)[first : first + second].max() > 1e-3
