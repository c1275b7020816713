"""Masked autoencoding (He et al. 2022): predict the pixels of the patches that the encoder did not see."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from vitvlm.models.outputs import EncoderOutput
from vitvlm.nn.patches import as_pair, patch_grid
from vitvlm.objectives import masked
from vitvlm.tasks.base import Batch, PredictFn, Task, Variables, collections, split_rng
from vitvlm.tasks.features import feature_fns


@dataclasses.dataclass(frozen=True)
class Reconstruct(Task):
    """The mean over real images of each image's mean squared error on its masked patches (MAE, section 3)."""

    model: nn.Module

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        return dict(self.model.init(split_rng(rng, "params", "mask"), batch["image"]))

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        output, updated = self.model.apply(
            variables,
            batch["image"],
            train=train,
            rngs=split_rng(rng, "mask", "dropout"),
            mutable=collections(variables) if train else [],
        )
        return masked.mean(output.loss_per_example, batch["example_mask"]), {}, dict(updated)

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        """`reconstruct`, and features of the encoder on whole images, no patch masked."""
        return {**feature_fns(self._encode, self.model.vit), "reconstruct": self._reconstruct}

    def _encode(self, variables: Variables, batch: Batch, **call: Any) -> EncoderOutput:
        return self.model.apply(variables, batch["image"], method=self.model.encode, **call)

    def _reconstruct(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """loss [B], mask [B, N], reconstruction [B, N, P*P*C]; the mask depends only on the example's index."""
        h, w = patch_grid(batch["image"].shape[1:3], as_pair(self.model.vit.patch_size))

        def noise_of(index: Array) -> Array:
            return jax.random.uniform(jax.random.fold_in(jax.random.key(0), index), (h * w,))

        noise = jax.vmap(noise_of)(batch["index"].astype(jnp.uint32))
        output = self.model.apply(variables, batch["image"], noise=noise)
        return {"loss": output.loss_per_example, "mask": output.mask, "reconstruction": output.reconstruction}
