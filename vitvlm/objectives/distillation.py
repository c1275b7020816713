"""Distillation losses of a student's logits against its teacher's (Touvron et al. 2021, sec. 3, equations 2 and 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hard(student: Float[Array, "B S"], teacher: Float[Array, "B S"]) -> Float[Array, "B"]:
    """Cross-entropy against the teacher's decision, the class of its highest logit (equation 3); in nats, float32."""
    decision = jnp.argmax(teacher, axis=-1)[:, None]
    return -jnp.take_along_axis(jax.nn.log_softmax(student.astype(jnp.float32)), decision, axis=-1)[:, 0]


def soft(student: Float[Array, "B S"], teacher: Float[Array, "B S"], temperature: float) -> Float[Array, "B"]:
    """tau^2 KL(teacher || student) of the distributions softmax(logits / tau) (equation 2); in nats, float32.

    The order of the two distributions is that of Hinton et al. (2015) and of the paper's code.
    """
    student, teacher = (jax.nn.log_softmax(logits.astype(jnp.float32) / temperature) for logits in (student, teacher))
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
