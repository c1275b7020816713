"""Facts that tasks, evaluators and planners may ask of any model, with the answer of one that has nothing special."""

from flax import linen as nn

from vitvlm.core.limits import Whole
from vitvlm.nn.calls import CAPTURES
from vitvlm.nn.patches import Pair


class ModelFacts:
    """Base of every registered model besides `nn.Module`; a model overrides what is otherwise for it.

    None of them has the name of a field without a default: a dataclass would take it for that default.

    Attributes:
      num_classes: S of its logits; 0 without a head.
      captures: what `capture` may ask of it.
      flexible_patches: whether a call takes a `patch_size` other than the model's own.
      has_text_tower, has_decoder: whether it embeds texts (`encode_text`), and writes them (`decode`).
      sees_images: whether its language call takes images among the text, see `models.vlm.VLM`.
      needs_image: whether its language call does nothing without one.
      reads: fields of a batch that its language call takes by keyword, besides the tokens and images.
      position_axes: of the positions that its language call takes: 1, or for positions of time, row and column 3.
      prefix_lm: whether what is not learned of a text, the prompt, is read both ways, not only by what follows it.
      writes: how it writes texts, see `generation.models`: "continuation" of a prompt, or an "answer" to one that it
        encodes; None if it does not.
      start_id: what its texts begin with: in place of the tokenizer's BOS, or an answer; None: as the tokenizer says.
      stop_ids: what ends its texts, whatever the files beside its weights say; none: what these say.
      max_positions: of what it reads and of the answer that it writes; None where they are relative, and where `length`
        says it.
      normalizes_targets: whether its reconstruction's target is normalised per patch; None if it reconstructs nothing.
    """

    num_classes: Whole = 0
    captures: tuple[str, ...] = CAPTURES
    flexible_patches: bool = False
    has_text_tower: bool = False
    has_decoder: bool = False
    sees_images: bool = False
    needs_image: bool = False
    reads: tuple[str, ...] = ()
    position_axes: int = 1
    prefix_lm: bool = False
    writes: str | None = None
    start_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    max_positions: int | None = None
    has_cls: bool = False
    prefix_count: int = 0
    normalizes_targets: bool | None = None

    @property
    def image_encoder(self) -> nn.Module:
        """The encoder that images go into first: an autoencoder's, a tower's or a backbone's, or the model itself."""
        return self

    @property
    def text_encoder(self) -> nn.Module:
        """The encoder that texts go into: a tower's, or the model itself."""
        return self

    @property
    def patch(self) -> Pair | None:
        """The side lengths (P, Q) of its patches; None for a model without patches."""
        return None

    @property
    def block_count(self) -> int:
        """Number of blocks of one width, each of whose outputs `capture=("hidden",)` gives; 0 for any other model."""
        return 0

    def tokens_in_training(self, grid: Pair) -> int:
        """Counts the patches of a grid (h, w) that the encoder sees in training."""
        return grid[0] * grid[1]
