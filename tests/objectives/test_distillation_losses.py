"""Distillation losses against NumPy and PyTorch."""

import numpy as np
import pytest
import torch

from vitvlm.objectives import distillation

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.normal(size=(7, 5)).astype(np.float32) * 3 for _ in range(2))


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_hard_is_the_cross_entropy_against_the_teachers_decision():
    expected = -log_softmax(STUDENT)[np.arange(7), TEACHER.argmax(axis=1)]
    np.testing.assert_allclose(distillation.hard(STUDENT, TEACHER), expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.5])
def test_soft_equals_torch(temperature):
    student, teacher = (
        torch.log_softmax(torch.from_numpy(logits) / temperature, dim=-1) for logits in (STUDENT, TEACHER)
    )
    divergence = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    expected = divergence.numpy() * temperature**2
    np.testing.assert_allclose(distillation.soft(STUDENT, TEACHER, temperature), expected, atol=1e-5)


def test_a_student_that_answers_as_its_teacher_loses_nothing():
    np.testing.assert_allclose(distillation.soft(TEACHER + 2, TEACHER, 3.0), np.zeros(7), atol=1e-5)
