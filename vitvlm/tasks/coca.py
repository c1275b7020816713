"""CoCa: which text belongs to which image, and what the text says next (Yu et al. 2022, section 3.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.core.limits import NotNegative
from vitvlm.models.outputs import CoCaOutput
from vitvlm.objectives import captioning, next_token
from vitvlm.tasks.base import Batch, Variables
from vitvlm.tasks.contrast import Contrast


@dataclasses.dataclass(frozen=True)
class CoCa(Contrast):
    """The contrastive loss, and the caption's: contrast_weight L_con + caption_weight L_cap (equation 4).

    L_cap is the mean over all tokens of the batch that are predicted. Each example's sum is computed with its
    embeddings, so it is as exact in micro-batches (GradCache) and over devices as these are.

    Attributes, besides those of `Contrast`:
      model: see `models.coca.CoCa`.
      contrast_weight, caption_weight: factors of the two losses in their sum.
    """

    contrast_weight: NotNegative = 1.0
    caption_weight: NotNegative = 2.0

    name: ClassVar[str] = "coca"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.has_decoder:
            raise ConfigError(f"task coca: a {type(self.model).__name__} has no decoder: take model coca")

    def _apply(
        self, variables: Variables, batch: Batch, rngs: dict[str, PRNGKeyArray], train: bool, **call: Any
    ) -> tuple[CoCaOutput, dict[str, Any]]:
        return super()._apply(variables, batch, rngs, train, logits=False, **call)

    def _of_examples(self, output: CoCaOutput, batch: Batch) -> dict[str, Float[Array, "B ..."]]:
        head = (output.decoder_tokens, output.head_kernel)
        caption = next_token.next_token_losses(*head, batch["text_tokens"], batch["text_mask"])
        return {**super()._of_examples(output, batch), "caption": caption}

    def _compare(
        self,
        examples: Mapping[str, Float[Array, "B ..."]],
        scale: Float[Array, ""],
        bias: Float[Array, ""] | None,
        batch: Batch,
    ) -> tuple[Array, dict[str, Array]]:
        """Metrics besides `Contrast`'s are both losses, without their weights."""
        contrast, metrics = super()._compare(examples, scale, bias, batch)
        caption = captioning.token_mean(examples["caption"], batch["text_mask"], batch["example_mask"])
        loss = self.contrast_weight * contrast + self.caption_weight * caption
        return loss, {**metrics, "contrastive_loss": contrast, "caption_loss": caption}
