"""Features of images, as a connector is given them: taken from an encoder's output, or brought along in its place."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitvlm.core import config
from vitvlm.models.outputs import EncoderOutput
from vitvlm.nn.patches import Pair

NAMES = ("tokens", "pyramid")


@flax.struct.dataclass
class Features:
    """Features of the I images of each text, in place of the pixels: the encoder need not be run again.

    Fields:
      values [B, I, N, E]: what the connector is given.
      grid: (h, w) of the tokens; with CLS among them, or of several scales, N is not h w.
      mask [B, I, N]: True at features of the image, where images have shapes of their own; None: all are.
      grids [B, I, 2]: rows and columns of each image's tokens, where they have shapes of their own; None: all have
        `grid`.
    """

    values: Float[Array, "B I N E"]
    grid: Pair = flax.struct.field(pytree_node=False)
    mask: Bool[Array, "B I N"] | None = None
    grids: Int[Array, "B I 2"] | None = None

    @classmethod
    def of(cls, encoded: EncoderOutput, values: Float[Array, "B*I N E"], texts: int) -> "Features":
        """Returns the features of an encoder's output for all B * I images, those of each of the B texts together."""

        def by_text(leaf: Array | None) -> Array | None:
            return None if leaf is None else leaf.reshape(texts, -1, *leaf.shape[1:])

        return cls(by_text(values), encoded.grid, by_text(encoded.mask), by_text(encoded.grids))

    @property
    def encoded(self) -> EncoderOutput:
        """The output of an encoder of all B * I images whose tokens these features are; it has nothing else."""

        def flat(leaf: Array | None) -> Array | None:
            return None if leaf is None else leaf.reshape(-1, *leaf.shape[2:])

        tokens = flat(self.values)
        prefix, pooled = tokens[:, :0], tokens.mean(axis=1)
        return EncoderOutput(tokens, prefix, pooled, self.grid, (), mask=flat(self.mask), grids=flat(self.grids))


def check(names: tuple[str | int, ...], keep_prefix: bool) -> None:
    """Raises ConfigError for features that no encoder has."""
    if not names:
        raise config.ConfigError('model.features: empty; write ("tokens",) for the tokens after the final norm')
    for which in names:
        if not isinstance(which, int) and which not in NAMES:
            near = config.suggest(str(which), NAMES)
            raise config.ConfigError(f"model.features: no features {which!r}; {near} Or numbers of layers.")
    if "pyramid" in names and (len(names) > 1 or keep_prefix):
        raise config.ConfigError('model.features: "pyramid" is a sequence of its own: without others or keep_prefix')


def put_together(
    encoded: EncoderOutput, names: tuple[str | int, ...], keep_prefix: bool, encoder: str
) -> Float[Array, "B N E"]:
    """Returns the features of an encoder's output along the channels: "tokens" after the final norm, or of layers.

    Args:
      encoder: what the encoder is called in messages.

    Raises ConfigError for layers that it does not have.
    """
    taken = []
    for which in names:
        if which == "tokens":
            parts = [encoded.prefix, encoded.tokens] if keep_prefix else [encoded.tokens]
            taken.append(jnp.concatenate(parts, axis=1))
            continue
        if isinstance(encoded.hidden, tuple):
            raise no_layers(names, encoder)
        count = len(encoded.hidden)
        if not -count <= which < count:
            raise config.ConfigError(
                f"model.features: {which}; the encoder has {count - 1} blocks: -{count} to {count - 1}"
            )
        taken.append(encoded.hidden[which][:, 0 if keep_prefix else encoded.prefix.shape[1] :])
    return jnp.concatenate(taken, axis=-1)


def no_layers(names: tuple[str | int, ...], encoder: str) -> config.ConfigError:
    """Returns the error of layers that are asked of an encoder which numbers none."""
    return config.ConfigError(
        f'model.features: {names}; {encoder} has no layers of one shape to number: take "tokens" or "pyramid"'
    )
