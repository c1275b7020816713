"""Vision-language models from a config: a variant, or an image encoder, a connector and a language model by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from flax import linen as nn

from vitvlm.core import config
from vitvlm.models.connectors import Connector, build_connector
from vitvlm.models.connectors.none import pixels_of
from vitvlm.models.registry import MODELS, build_backbone, module_fields, named_variant, sharing
from vitvlm.models.two_towers import SHARED
from vitvlm.models.vlm import VLM
from vitvlm.models.vlm_variants import VARIANTS
from vitvlm.nn.patches import as_pair


@MODELS.register("vlm")
def build_vlm(
    variant: str | None = None,
    image: Mapping[str, Any] | None = None,
    connector: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    features: Sequence[str | int] | str | int | None = None,
    **fields: Any,
) -> VLM:
    """A vision-language model from a variant ("LLaVA-1.5-7B"), from its parts, or from a variant with some changed.

    `image`, `connector` and `text` describe the parts by name and fields: `{"name": "vit", "variant": "S/14"}`,
    `{"name": "mlp"}`, `{"name": "decoder", "variant": "SmolLM2-135M"}`; a given variant's are changed by what they say,
    or replaced by one of another name. scan, remat, dtype and param_dtype are those of all parts that do not say
    otherwise. With the connector "none" of an image encoder only the patch size counts, which the log says.

    Raises ConfigError that names the field.
    """
    published = named_variant(VARIANTS, variant)
    config.check_names(fields, ["variant", *SHARED, *module_fields(VLM)], "model")
    shared = {name: value for name, value in fields.items() if name in SHARED}
    own = published | {name: value for name, value in fields.items() if name not in SHARED}
    described = {
        part: _described(part, own.pop(part, None), given)
        for part, given in (("image", image), ("connector", connector), ("text", text))
    }

    def make(part: str, build: Callable[..., nn.Module]) -> nn.Module:
        return sharing(build(described[part], where=f"model.{part}"), described[part], shared)

    language = make("text", build_backbone)
    if language.writes is None:
        raise config.ConfigError(f"model.text: {described['text']['name']} writes no text; take decoder or t5")
    connecting = make("connector", lambda section, where: build_connector(section, language.embedding_width, where))
    language = _looking(language, connecting, described["text"]["name"])
    encoder = make("image", _image_encoder if described["connector"]["name"] != "none" else _patches)
    features = own.pop("features", ("tokens",)) if features is None else features
    features = (features,) if isinstance(features, str | int) else tuple(features)
    return config.call(VLM, own, "model", image=encoder, connector=connecting, text=language, features=features)


def _looking(language: nn.Module, connector: Connector, name: str) -> nn.Module:
    """The language model with the fields that the connector needs. Raises ConfigError for one without them."""
    needed = connector.language_fields()
    if missing := needed.keys() - set(module_fields(type(language))):
        raise config.ConfigError(
            f"model.connector: needs layers of the language model that look at images, and a {name} has no "
            f"{', '.join(missing)}: take text decoder, or another connector"
        )
    return language.clone(**needed)


def _described(part: str, published: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The section of a part: the variant's, changed by what is given, or that alone if it has another name."""
    if published is None and given is None:
        raise config.ConfigError(f"model.{part}: missing; describe the {part} by its name and fields")
    published, given = dict(published or {}), dict(given or {})
    return given if given.get("name", published.get("name")) != published.get("name") else published | given


def _image_encoder(section: Mapping[str, Any], where: str) -> nn.Module:
    encoder = build_backbone(section, where)
    if encoder.writes is not None or encoder.has_text_tower:
        raise config.ConfigError(f"{where}: {section['name']} is no image encoder; take vit, swin, resnet, …")
    return encoder


def _patches(section: Mapping[str, Any], where: str) -> nn.Module:
    """The patches of an image that no encoder sees, as large as those of the encoder that the section describes."""
    if "name" not in section:
        return pixels_of(config.call(lambda patch_size: as_pair(patch_size), section, where), where)
    encoder = build_backbone(section, where)
    logging.info('connector "none": there is no %s, patches of %s go straight in', section["name"], encoder.patch)
    return pixels_of(encoder.patch, where)
