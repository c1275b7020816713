"""Classification with a teacher: the loss is the paper's, and the teacher stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.objectives import mixing
from vitvlm.tasks import Classify
from vitvlm.tasks.base import split_rng
from vitvlm.tasks.distillation import Distillation, Teacher

TINY = dict(width=16, depth=1, heads=2, mlp_width=24, patch_size=4, image_size=8, num_classes=4)
RNG = jax.random.key(3, impl="rbg")
SCALE, SHIFT = np.array([2.0, 1.0, 0.5], np.float32), np.array([0.1, 0.0, -0.2], np.float32)


def random_variables(model, seed):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(5, 8, 8, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 4, 5), jnp.int32),
        "example_mask": jnp.array([1.0, 1, 1, 1, 0]),
    }


@pytest.fixture(scope="module")
def teacher():
    model = models.build("vit", pool="gap", **TINY)
    return Teacher(model, random_variables(model, 1), SCALE, SHIFT)


def run(task, variables, batch, train=True):
    return jax.jit(lambda variables, batch: task.loss(variables, batch, RNG, train))(variables, batch)


def apply(model, variables, images):
    return jax.jit(model.apply)(variables, images)


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("student", ["deit", "vit"])
@pytest.mark.parametrize(
    "fields", [{}, {"kind": "soft", "weight": 0.2, "temperature": 3.0}], ids=lambda fields: fields.get("kind", "hard")
)
def test_loss_equals_the_papers_equations(student, fields, batch, teacher):
    model = models.build(student, **TINY)
    distillation = Distillation(teacher, **fields)
    task = Classify(model, distillation=distillation)
    variables = random_variables(model, 2)
    output = apply(model, variables, batch["image"])
    answers = apply(teacher.model, teacher.variables, batch["image"] * SCALE + SHIFT).logits
    to_labels, to_teacher = output.logits, output.logits
    if student == "deit":
        to_labels, to_teacher = output.cls_logits, output.distillation_logits
    rows, real = np.arange(5), np.asarray(batch["example_mask"]) > 0
    on_labels = -log_softmax(to_labels)[rows, batch["label"]][real].mean()
    if distillation.kind == "hard":
        on_teacher = -log_softmax(to_teacher)[rows, np.argmax(answers, axis=1)][real].mean()
    else:
        ours, theirs = log_softmax(to_teacher / 3), log_softmax(answers / 3)
        on_teacher = 9 * (np.exp(theirs) * (theirs - ours)).sum(axis=1)[real].mean()
    loss, metrics, _ = run(task, {**variables, **task.constants}, batch)
    np.testing.assert_allclose(metrics["label_loss"], on_labels, rtol=1e-5)
    np.testing.assert_allclose(metrics["distillation_loss"], on_teacher, rtol=1e-5)
    weight = fields.get("weight", 0.5)
    np.testing.assert_allclose(loss, (1 - weight) * on_labels + weight * on_teacher, rtol=1e-5)


def test_evaluation_needs_no_teacher_and_scores_the_mean_of_the_heads(batch, teacher):
    model = models.build("deit", **TINY)
    variables = random_variables(model, 2)
    plain, taught = Classify(model), Classify(model, distillation=Distillation(teacher))
    assert plain.constants == {}
    loss, metrics, _ = run(taught, variables, batch, train=False)
    expected, _, _ = run(plain, variables, batch, train=False)
    assert loss == expected and set(metrics) == {"accuracy"}
    logits = apply(model, variables, batch["image"]).logits
    np.testing.assert_allclose(loss, -log_softmax(logits)[np.arange(4), batch["label"][:4]].mean(), rtol=1e-5)


def test_no_gradient_reaches_the_teacher_and_both_heads_learn(batch, teacher):
    model = models.build("deit", **TINY)
    task = Classify(model, distillation=Distillation(teacher, kind="soft"))
    variables = {**random_variables(model, 2), **task.constants}
    gradient = jax.jit(jax.grad(lambda variables: task.loss(variables, batch, RNG, True)[0]))(variables)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["teacher"]))
    for head in ("head", "distillation_head"):
        assert np.abs(gradient["params"][head]["kernel"]).max() > 0


class PixelReader(Teacher):
    """Teacher whose logits are the first four pixels of each image."""

    def logits(self, variables, images):
        return images.reshape(len(images), -1)[:, :4]


def test_the_teacher_sees_the_mixed_images(batch, teacher):
    model = models.build("deit", **TINY)
    task = Classify(model, mixup=1.0, distillation=Distillation(PixelReader(teacher.model, teacher.variables)))
    variables = {**random_variables(model, 2), **task.constants}
    head = variables["params"]["distillation_head"]
    head["kernel"] = jnp.zeros_like(head["kernel"])  # the student says the same of every image
    images, mask = batch["image"], batch["example_mask"]
    mixed, _ = mixing.mix(split_rng(RNG, "mix", "dropout")["mix"], images, jnp.zeros((5, 4)), mask, 1.0, 0.0)
    decisions, unmixed = (np.argmax(each.reshape(5, -1)[:, :4], axis=1)[:4] for each in (mixed, images))
    assert (decisions != unmixed).any()
    _, metrics, _ = run(task, variables, batch)
    expected = -log_softmax(head["bias"][None])[0][decisions].mean()
    np.testing.assert_allclose(metrics["distillation_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "harsh"}, r"task\.distillation\.kind: no kind 'harsh'; did you mean \"hard\""),
        ({"weight": 1.5}, r"task\.distillation\.weight: 1.5 is not a share"),
        ({"kind": "soft", "temperature": 0.0}, r"task\.distillation\.temperature: 0.0 is not above 0"),
        ({"temperature": 3.0}, r'task\.distillation\.temperature: 3.0, but a "hard" decision has none'),
    ],
    ids=str,
)
def test_fields_that_cannot_be_meant(fields, message, teacher):
    with pytest.raises(ConfigError, match=message):
        Distillation(teacher, **fields)


def test_a_teacher_of_other_classes(teacher):
    student = models.build("deit", **TINY | {"num_classes": 7})
    with pytest.raises(ConfigError, match=r"task\.distillation\.teacher: it knows 4 classes, the student 7"):
        Classify(student, distillation=Distillation(teacher))
