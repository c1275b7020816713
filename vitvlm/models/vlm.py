"""Vision-language models: an image encoder, a connector and a language model, each any there is (Liu et al. 2023)."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Whole
from vitvlm.core.mrope import multimodal_positions
from vitvlm.models import image_features, image_places
from vitvlm.models.connectors import Connector, ConnectorOutput
from vitvlm.models.facts import ModelFacts
from vitvlm.models.image_features import Features
from vitvlm.models.language import Cache, count_positions, extent
from vitvlm.models.outputs import EncoderOutput, VLMOutput
from vitvlm.models.two_towers import by_part
from vitvlm.nn.calls import check_capture
from vitvlm.nn.patches import Patches
from vitvlm.nn.pyramids import ScaleTokens
from vitvlm.nn.roles import Role, Roles, under

PARTS = ("image", "connector", "text")


class VLM(nn.Module, ModelFacts):
    """Images to features, features to image tokens, and a language model that reads these and a text.

    By the connector's fusion, image tokens stand among those of the text, or the language model looks at them by
    cross-attention. Without an image encoder (`connectors.none`), the language model reads the patches themselves.

    Fields:
      image: an image encoder. connector: see `models.connectors`. text: a decoder, or an encoder-decoder whose encoder
        reads images and prompt.
      image_token: id at whose places image tokens stand where a call has no image_index; None: calls have one.
      features: what the connector is given: "tokens", after the encoder's final norm; numbers, those of its `hidden`,
        of which -2 are the tokens before the last block; several are put together along the channels. Or "pyramid"
        alone: all levels of the encoder's pyramid as one sequence, see `nn.pyramids.ScaleTokens`.
      keep_prefix: whether CLS and registers are among them, before the others.
      own_tokens: learned vectors [own_tokens, D] that may stand among image tokens; their rows in an image_index are
        those behind the images' (LLaVA-NeXT's newline).
      prefix_lm: whether prompts, images included, are read both ways (PaliGemma); see `ModelFacts.prefix_lm`.
    """

    sees_images: ClassVar[bool] = True

    image: nn.Module
    connector: Connector
    text: nn.Module
    image_token: int | None = None
    features: tuple[str | int, ...] = ("tokens",)
    keep_prefix: bool = False
    own_tokens: Whole = 0
    prefix_lm: bool = False

    def setup(self) -> None:
        self._check()
        if "pyramid" in self.features:
            self.scales = ScaleTokens(self.connector.width, (14, 14), dtype=self.dtype, param_dtype=self.param_dtype)
        if self.own_tokens:
            shape = (self.own_tokens, self.text.embedding_width)
            self.own = self.param("own", nn.initializers.normal(shape[1] ** -0.5), shape, self.param_dtype)

    def __call__(
        self,
        images: image_places.Images | Features | None = None,
        text_tokens: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B S"] | None = None,
        *,
        image_mask: Shaped[Array, "B I"] | None = None,
        image_index: Int[Array, "B L"] | None = None,
        image_times: Int[Array, "B I"] | None = None,
        positions: Int[Array, "B L *axes"] | None = None,
        cache: Cache | None = None,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> VLMOutput:
        """Reads texts with images among them, or goes on with texts.

        Args:
          images: I of each text, or one, of shapes of their own as `Patches` with leaves [B, I, …] or [B, …]; a
            connector may take them for the frames of videos. `Features`, as `image_features` gives them, spare the
            encoder. None: texts alone, or a cache that has seen the images.
          text_tokens, mask, positions, cache: see `models.decoder.Decoder`; where image tokens stand, any id does, as
            where an image's marker does in "cross" fusion, which is `image_token` if there is such. Positions of
            several axes are by default those of `core.mrope`.
          image_mask [B, I]: 1 or True where there is an image; all are by default. Nothing looks at the tokens of
            others, what follows is predicted from the token before them, and positions do not count them (those of
            several axes stay as they are given).
          image_index [B, L]: which row stands at each place of the text, -1 where its own token does. A text's rows are
            the M tokens of its first image, then those of its second, …, then the model's own. By default image tokens
            stand in their order at the places of `image_token`. A row that is not there is NaN.
          image_times [B, I]: of slices of a video that are images here, their number in it; 0 by default.
          capture: any of "hidden" and "attention", of each part that has it.
          perturb: by "image", "connector" and "text", that of the parts.
          given: what the connector reads (`Connector.reads`), and other arguments of the language model's call:
            attention_mask, prefix_mask, text_segments, logits; decoder_tokens and so on of an encoder-decoder.

        Raises ConfigError for features that the encoder does not have and for what a connector cannot connect;
        ValueError for images that are no [B, I, H, W, C], and for no way to tell where they stand.
        """
        check_capture(capture)
        perturb = by_part(perturb, PARTS)
        reads = {name: given.pop(name) for name in self.connector.reads if name in given}
        given |= {"train": train, "capture": capture, **perturb["text"], **_not_none(cache=cache)}
        if images is None:
            if image_index is not None or image_mask is not None:
                raise ValueError("image_index or image_mask without images: give both, or neither")
            if self.connector.fusion == "cross" and not jax.tree.leaves((cache or {}).get("cross")):
                given["context"] = jnp.zeros((len(text_tokens), 0, 1), self.dtype)  # nothing to look at
            return VLMOutput(**vars(self.text(text_tokens, mask, **_not_none(positions=positions), **given)))
        images = image_places.of_texts(images, text_tokens)
        lead = jax.tree.leaves(images)[0].shape[:2]
        there = jnp.ones(lead, bool) if image_mask is None else image_mask.astype(bool)
        encoded, connected, image_tokens = self._connect(images, there, train, capture, perturb, reads)
        there = there.reshape(*image_tokens.shape[:2], -1).any(axis=2)  # of videos, if one of their frames is
        if image_index is None and self.image_token is not None:
            image_index = image_places.in_order(
                text_tokens, self.image_token, image_places.rows_of(encoded, image_tokens)
            )
        if self.connector.fusion == "cross":
            allowed = _allowed(given.get("attention_mask"), given.get("text_segments"))
            given |= self._context(image_tokens, there, image_index, mask, allowed, cache)
            mask, positions, following = self._placed(mask, positions, None, cache, text_tokens)
            if image_index is not None and self.image_token is not None:
                text_tokens = jnp.where(image_index < 0, text_tokens, self.image_token)
            output = self.text(text_tokens, mask, **_not_none(positions=positions), **given)
        else:
            if image_index is None:
                raise ValueError(
                    "images without their places: give image_index, or build the model with an image_token"
                )
            visible = None
            if image_mask is not None:
                found = self._without(text_tokens, image_tokens, image_index, there, positions)
                text_tokens, image_index, visible, call = found
                given |= call
            embeddings = self._among(text_tokens, image_tokens, image_index)
            times = jnp.zeros(image_tokens.shape[:2], jnp.int32) if image_times is None else image_times
            shapes = image_index, image_places.grids_of(encoded, image_tokens), times, image_tokens.shape[2]
            mask, positions, following = self._placed(mask, positions, visible, cache, text_tokens, shapes)
            output = self.text(mask=mask, embeddings=embeddings, **_not_none(positions=positions), **given)
        return VLMOutput(
            **vars(output),
            image_tokens=image_tokens,
            image=encoded if "hidden" in capture else encoded.replace(hidden=None),
            connector_attention=connected.attention,
            mask=mask,
            next_position=following,
        )

    def encode_images(
        self, images: Float[Array, "B I H W C"] | Patches, *, train: bool = False, **reads: Array
    ) -> Float[Array, "B I M D"]:
        """Returns the image tokens alone; `reads` is what the connector reads besides."""
        there = jnp.ones(jax.tree.leaves(images)[0].shape[:2], bool)
        return self._connect(images, there, train, (), by_part(None, PARTS), reads)[2]

    def image_features(self, images: image_places.Images, *, train: bool = False) -> Features:
        """Returns the features of images [B, I, …] or [B, …], as the connector is given them."""
        images = image_places.by_text(images)
        encoded, values = self._encode(images, train)
        return Features.of(encoded, values, len(jax.tree.leaves(images)[0]))

    def empty_cache(self, batch: int, room: int, *how: Any, **fields: Any) -> Cache:
        """Returns the language model's cache, with room for image tokens and text."""
        return self.text.empty_cache(batch, room, *how, **fields)

    @property
    def image_encoder(self) -> nn.Module:
        return self.image.image_encoder

    @property
    def text_encoder(self) -> nn.Module:
        return self.text

    @property
    def writes(self) -> str | None:
        """The way in which its language model writes."""
        return self.text.writes

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of what it and the connector read besides the images."""
        return ("image_times",) * (self.text.position_axes > 1) + self.connector.reads

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def length(self) -> int:
        """The most tokens that its language model was trained for, images among them."""
        return self.text.length

    @property
    def start_id(self) -> int:
        """The token that every text of an encoder-decoder begins with."""
        return self.text.start_id

    @property
    def roles(self) -> Roles:
        """Encoder and language model count their own layers; the connector is on top of the encoder."""
        return (
            *under("image/", self.image.roles),
            *under("scales/", ScaleTokens.roles),
            *under("connector/", self.connector.roles),
            ("own", Role("token")),
            *under("text/", self.text.roles),
        )

    @property
    def dtype(self) -> DTypeLike:
        return self.text.dtype

    @property
    def param_dtype(self) -> DTypeLike:
        return self.text.param_dtype

    def _encode(
        self,
        images: Float[Array, "B I H W C"] | Patches,
        train: bool,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> tuple[EncoderOutput, Float[Array, "B*I N E"]]:
        """Encodes images, all of them one after the other; with the features that the connector is given."""
        layers = any(isinstance(each, int) for each in self.features)
        wanted = {*capture, "hidden"} if layers else set(capture)
        kept = tuple(name for name in self.image.captures if name in wanted)
        if layers and "hidden" not in kept:
            raise image_features.no_layers(self.features, type(self.image).__name__)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), images)
        encoded = self.image(flat, train=train, **_if_any(capture=kept), **(perturb or {}))
        if "pyramid" in self.features:
            return encoded, self.scales(encoded.pyramid)
        names = self.features, self.keep_prefix, type(self.image).__name__
        return encoded, image_features.put_together(encoded, *names)

    def _connect(
        self,
        images: Float[Array, "B I H W C"] | Patches | Features,
        there: Bool[Array, "B I"],
        train: bool,
        capture: Collection[str],
        perturb: Mapping[str, Mapping[str, Any]],
        reads: Mapping[str, Array],
    ) -> tuple[EncoderOutput, ConnectorOutput, Float[Array, "B V M D"]]:
        """Encodes images and connects their features, those of a video's frames together; with the tokens by text."""
        (B, count), frames = there.shape, self.connector.frames
        if count % frames:
            raise config.ConfigError(f"model.connector.frames: {frames} do not divide the {count} images of a text")
        if isinstance(images, Features):
            if perturb["image"]:
                raise ValueError("perturb of the image encoder, which features do not go through: give the images")
            encoded, features = images.encoded, images.encoded.tokens.astype(self.connector.dtype)
        else:
            encoded, features = self._encode(images, train, capture, perturb["image"])
        mask = encoded.mask
        if frames > 1:
            real = jnp.broadcast_to(there.reshape(-1, 1), features.shape[:2])
            mask = (real if mask is None else real & mask).reshape(B * count // frames, -1)
            features = features.reshape(*mask.shape, -1)
        kept = tuple(name for name in self.connector.captures if name in capture)
        connected = self.connector(
            features,
            encoded.grid,
            mask,
            train=train,
            **_if_any(capture=kept),
            **perturb["connector"],
            **reads,
        )
        return encoded, connected, connected.tokens.reshape(B, count // frames, *connected.tokens.shape[1:])

    def _context(
        self,
        image_tokens: Float[Array, "B V M D"],
        there: Bool[Array, "B V"],
        index: Int[Array, "B L"] | None,
        mask: Shaped[Array, "B S"] | None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None,
        cache: Cache | None,
    ) -> dict[str, Array]:
        """Returns what the language model's layers look at, and which text sees which of it."""
        B, _, M, D = image_tokens.shape
        if index is not None and mask is not None:
            mask = jnp.take(mask, extent(cache, index.shape[1])[0] + jnp.arange(index.shape[1]), axis=1, mode="clip")
        sees = self.connector.context_mask(there, M, index, mask, attention_mask)
        return {"context": image_tokens.reshape(B, -1, D), "context_mask": sees}

    def _among(
        self, text_tokens: Int[Array, "B L"], image_tokens: Float[Array, "B I M D"], index: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Returns texts with the image tokens among them."""
        B, count, M, D = image_tokens.shape
        rows = image_tokens.reshape(B, count * M, D)
        if self.own_tokens:
            rows = jnp.concatenate([rows, jnp.broadcast_to(self.own.astype(rows.dtype), (B, *self.own.shape))], axis=1)
        texts = self.text.embed_text(jnp.where(index < 0, text_tokens, 0))
        return image_places.put(rows, texts, index)

    def _without(
        self,
        text_tokens: Int[Array, "B L"],
        image_tokens: Float[Array, "B I M D"],
        index: Int[Array, "B L"],
        there: Bool[Array, "B I"],
        positions: Int[Array, "B L *axes"] | None,
    ) -> tuple[Int[Array, "B L"], Int[Array, "B L"], Bool[Array, "B L"], dict[str, Array]]:
        """Takes the images that are not there out of texts: the token before each of their places stands there again.

        Returns the tokens and the index without them, what is visible, and, for a decoder's call, the places that see
        themselves only because nothing visible stands before them.
        """
        visible = image_places.visible(image_places.images_at(index, *image_tokens.shape[1:3]), there)
        places, alone = image_places.stand_ins(visible, positions)
        text_tokens, index = (jnp.take_along_axis(each, places, axis=1) for each in (text_tokens, index))
        call = {} if self.text.writes == "answer" else {"alone": alone}
        return text_tokens, jnp.where(alone, -1, index), visible, call

    def _placed(
        self,
        mask: Shaped[Array, "B S"] | None,
        positions: Int[Array, "B L *axes"] | None,
        visible: Bool[Array, "B L"] | None,
        cache: Cache | None,
        text_tokens: Int[Array, "B L"],
        images: tuple[Int[Array, "B L"], Int[Array, "B I 2"], Int[Array, "B I"], int] | None = None,
    ) -> tuple[Bool[Array, "B S"] | None, Int[Array, "B L *axes"] | None, Int[Array, "B"] | None]:
        """Returns the mask and the positions without what is not visible, and the position behind each text.

        Args:
          images: where image tokens stand, the grids and times of the images, and M, for positions of several axes.
        """
        B, L = text_tokens.shape
        if self.text.writes == "answer":  # whose encoder reads the whole prompt at once, by distances
            return _both(mask, visible), positions, None
        before, room = extent(cache, L)
        if visible is not None and cache is not None:
            if (room := room if mask is None else mask.shape[1]) is None:
                raise ValueError("image_mask with a cache of local layers alone: give the mask of all places too")
            visible = jax.lax.dynamic_update_slice(jnp.ones((B, room), bool), visible, (0, before))
        mask, places = _both(mask, visible), before + jnp.arange(L)
        real = jnp.ones((B, L), bool) if mask is None else jnp.take(mask, places, axis=1, mode="clip")
        if positions is None and self.text.position_axes > 1 and images is not None:
            positions = multimodal_positions(real, *images)
        elif positions is None:
            positions = count_positions(mask, places, B)
        elif visible is not None and positions.ndim == 2:
            positions = image_places.positions_without(positions, jnp.take(visible, places, axis=1))
        highest = positions if positions.ndim == 2 else positions.max(axis=-1)
        return mask, positions, jnp.max(jnp.where(real, highest, -1), axis=1) + 1

    def _check(self) -> None:
        image_features.check(self.features, self.keep_prefix)
        if self.text.writes is None:
            raise config.ConfigError(
                f"model.text: a {type(self.text).__name__} writes no text; take decoder or another language model"
            )


def _both(mask: Shaped[Array, "B S"] | None, visible: Bool[Array, "B S"] | None) -> Bool[Array, "B S"] | None:
    if mask is None:
        return visible
    return mask.astype(bool) if visible is None else mask.astype(bool) & visible


def _allowed(
    attention_mask: Bool[Array, "#B #K #L #M"] | None, text_segments: Int[Array, "B L"] | None
) -> Bool[Array, "#B #K L M"] | None:
    """True where a token may look, by a mask and by the texts that are packed in a row; None where all may."""
    if text_segments is None:
        return attention_mask
    same = (text_segments[:, :, None] == text_segments[:, None, :])[:, None]
    return same if attention_mask is None else attention_mask & same


def _not_none(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _if_any(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value}
