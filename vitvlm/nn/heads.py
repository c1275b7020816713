"""The head that classifies: a linear layer on an encoder's features, zero at first."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.nn.dense import Dense


def classify(
    features: Float[Array, "B D"], num_classes: int, name: str = "head", **dtypes: DTypeLike
) -> Float[Array, "B S"] | None:
    """Logits of S classes by a head that is zero at first, None without classes; to be called in a compact method.

    Args:
      name: of the head in the module that calls.
      dtypes: dtype of the computation, param_dtype of the parameters.
    """
    if not num_classes:
        return None
    return Dense(num_classes, kernel_init=nn.initializers.zeros_init(), name=name, **dtypes)(features)
