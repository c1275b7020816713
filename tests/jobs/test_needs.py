"""Needs of tasks: declared by the task, described by the config where it has something to say, made in one place."""

import jax
import pytest

from tests.data import pictures
from vitvlm.core.config import ConfigError
from vitvlm.jobs.setup import needs
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.tasks import TASKS
from vitvlm.tasks.base import NEEDS

OPS = "decode(3)|resize(8)|normalize"
SPLIT = {"split": "train", "ops": OPS}
VIT = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "mlp_width": 16, "patch_size": 4, "image_size": 8}
CLASSIFY = {
    "model": {**VIT, "num_classes": 2},
    "task": {"name": "classify"},
    "data": {"source": "folder:nowhere", "train": SPLIT, "eval": SPLIT},
    "batch_size": 4,
}


def test_all_that_tasks_may_need_is_made():
    assert needs.OF_JOB.keys() | needs.OF_LOSS.keys() == NEEDS.keys()
    assert not needs.OF_JOB.keys() & needs.OF_LOSS.keys()
    for name in TASKS.names():
        assert set(TASKS.get(name).needs) <= NEEDS.keys()


def test_what_the_loss_alone_needs_is_made_for_a_training_only():
    mesh = jax.sharding.AbstractMesh((2, 4), ("fsdp", "tensor"))
    known = needs.Known(mesh, ("ant", "bee"), DataSetup.of(CLASSIFY))
    section = {"loss_kind": "sigmoid", "class_weights": "balanced", "distillation": None}
    own, made = needs.resolve(("mesh", "axes", "class_weights", "distillation"), section, known)
    assert own == {"loss_kind": "sigmoid"}
    assert made == {"mesh": mesh, "axes": ("fsdp",)}


def test_a_config_does_not_set_what_the_job_makes():
    text = {"name": "text", "width": 8, "depth": 1, "heads": 2, "mlp_width": 16, "vocab_size": 9, "length": 6}
    towers = {"name": "two_towers", "image": VIT, "text": text, "embed_dim": 8}
    config = {**CLASSIFY, "model": towers, "task": {"name": "contrast", "mesh": "all"}}
    with pytest.raises(ConfigError, match=r"^config\.task\.mesh: no such field"):
        ModelSetup.of(config)


def test_a_model_is_set_up_without_data_and_takes_no_class_weights():
    model = ModelSetup.of({**CLASSIFY, "task": {"name": "classify", "class_weights": {"ant": 2.0}}})
    assert model.task.class_weights is None and model.head is None
    assert model.example_batch["image"].shape == (1, 8, 8, 3) and model.example_batch["label"].shape == (1,)
    named = ModelSetup.of({**CLASSIFY, "classes": ["ant", "bee"]})
    assert named.head.names == ("ant", "bee")
    with pytest.raises(ConfigError, match=r"num_classes: 2, but config\.classes names 1 classes; set it to 1"):
        ModelSetup.of({**CLASSIFY, "classes": ["ant"]})


def test_fields_of_no_part_are_errors_of_every_part():
    for part in (DataSetup.of, ModelSetup.of):
        with pytest.raises(ConfigError, match=r'^config\.batchsize: no such field; did you mean "batch_size"\?'):
            part({**CLASSIFY, "batchsize": 4})


def test_where_operations_leave_a_shape_open_the_first_readable_example_has_it(tmp_path):
    section = {"split": "train", "ops": "decode(3)|normalize"}
    data = {"source": f"folder:{tmp_path}", "train": section, "eval": section}
    config = {**CLASSIFY, "model": {**CLASSIFY["model"], "image_size": (8, 12)}, "data": data}
    pictures.folder(tmp_path / "train", {"ant": 2, "bee": 2}, size=(8, 12))
    (tmp_path / "train" / "ant" / "000.png").write_bytes(b"damaged")
    assert ModelSetup.of(config).example_batch["image"].shape == (1, 8, 12, 3)
    opened = ModelSetup.of(config, DataSetup.of(config).open())
    assert opened.example_batch["image"].shape == (1, 8, 12, 3) and opened.head.names == ("ant", "bee")
