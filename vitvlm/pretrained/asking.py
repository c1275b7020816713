"""Prompts with images as a model reads them: through its own operations, then the places that training gives them."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Int, Shaped
from PIL import Image, ImageOps

from vitvlm.core.config import ConfigError
from vitvlm.data import chat_files, operations, supervision, tokenizers
from vitvlm.data.chat import ChatTemplate
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.kinds import OF_EACH_IMAGE
from vitvlm.data.operations import asking, image_places
from vitvlm.data.operations.asking import PromptRules
from vitvlm.data.operations.image_places import ImageRules
from vitvlm.data.operations.parsing import Operation, Pipeline
from vitvlm.generation import prompts as plain
from vitvlm.generation.loaded import Loaded, Messages, Picture, Shown
from vitvlm.models.connectors.qformer import QFormerConnector
from vitvlm.models.vlm import VLM
from vitvlm.nn.patches import Patches
from vitvlm.pretrained import texts
from vitvlm.pretrained.prompt_formats import FORMATS, Format

PIXELS = {"image", "images"}
TOKENS = ("<image>", "<|image|>", "<|image_pad|>")  # as tokenizers write an image token


class Described(Loaded, Protocol):
    """The part of `pretrained.Pretrained` that is read here."""

    @property
    def preprocessing(self) -> str | None: ...

    @property
    def chat_template(self) -> ChatTemplate: ...


def with_images(
    loaded: Described,
    prompts: Sequence[str | Messages],
    images: Sequence[Sequence[Picture]],
    names: Sequence[str] | None = None,
) -> Shown:
    """Makes ids of prompts, and what else the model reads with them; see `Pretrained.with_images`."""
    model = loaded.model
    names = [f"prompt {i}" for i in range(len(prompts))] if names is None else names
    if len(images) != len(prompts):
        raise ConfigError(f"images of {len(images)} prompts, and {len(prompts)} prompts: give a list for each")
    if not model.sees_images:
        raise ConfigError(f"images: {type(model).__name__} sees no images: take a vision-language model's weights")
    plain.tokenizer_of(loaded)
    whole = _operations(loaded)
    seen = _seen(loaded, whole)
    examples, found = [], []
    try:
        for name, prompt, pictures in zip(names, prompts, images):
            examples.append(_example(name, pictures, whole))
            found.append(seen.prompt(loaded, examples[-1], prompt))
    except DataError as error:
        raise ConfigError(str(error)) from error
    inputs = _inputs(examples, found, names)
    if inputs and _instructed(model):
        inputs |= _instructions(loaded, model.connector, prompts, names, seen.rules.images.marker)
    return Shown([each.ids for each in found], inputs, [each.places for each in found])


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Rules of a model's prompts; `given` are the arguments of its `supervise`, where it was trained here."""

    rules: PromptRules
    given: Mapping[str, Any] | None = None
    chat: bool = False
    counts: dict[tuple[int, ...], int] = dataclasses.field(default_factory=dict)  # image tokens, by shapes of images

    def prompt(self, loaded: Described, example: Mapping[str, Any], prompt: str | Messages) -> asking.Asked:
        """The tokens of an example's prompt."""
        rules = self.rules
        if isinstance(prompt, str) and self.chat:
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, str) and self.given is None and loaded.model.needs_image:
            (ids,) = plain.ids_of(loaded, [prompt], add_eos=None if loaded.model.writes == "answer" else False)
            return asking.Asked(ids)
        if self.given is None and not loaded.model.needs_image:
            shape = np.shape(example.get("images", ()))[1:]
            if shape not in self.counts:
                self.counts[shape] = _count(loaded, example)
            own = dataclasses.replace(rules.images, image_tokens=self.counts[shape])
            rules = dataclasses.replace(rules, images=own)
        template = None if isinstance(prompt, str) else self._template(loaded)
        found = asking.asked(example, prompt, plain.tokenizer_of(loaded), rules, template)
        return found if rules.encoded else found._replace(ids=plain.begun(loaded, [found.ids])[0])

    def _template(self, loaded: Described) -> ChatTemplate:
        chat = None if self.given is None else self.given["chat"]
        template = loaded.chat_template
        if isinstance(chat, str):
            template = chat_files.read(self.given["tokenizer"], chat)
        chat_files.check_tokens(template, plain.tokenizer_of(loaded))
        return template


def _seen(loaded: Described, whole: Pipeline) -> _Seen:
    given, encoded = supervision.rules_of(whole), loaded.model.writes == "answer"
    if given is not None:
        images = ImageRules(
            **{field.name: given[field.name] for field in dataclasses.fields(ImageRules) if field.name in given}
        )
        begins = given["prompt"] is None and given["answer"] is not None
        separator = None if begins else given["separator"]
        return _Seen(PromptRules(images, separator, encoded), given, bool(given["chat"]))
    (architecture,) = (loaded.source.get("config") or {}).get("architectures") or ("",)
    known = Format() if loaded.model.needs_image else FORMATS.get(architecture)  # BLIP's look at it from the text
    if known is None:
        what = f"a {architecture}" if architecture else "these weights"
        raise ConfigError(
            f"images: how prompts of {what} are written is not known here, as it is of {', '.join(FORMATS)}: give ids "
            "and `inputs=` instead"
        )
    images = ImageRules(image_token=_image_token(loaded, whole), image_separator=known.separator)
    rules = PromptRules(images, None, encoded, known.written, known.apart, known.bos_behind, known.end)
    return _Seen(rules)


def _instructed(model: nn.Module) -> bool:
    """Tells whether the queries of a model see a prompt too (InstructBLIP)."""
    connector = model.connector if isinstance(model, VLM) else None
    return isinstance(connector, QFormerConnector) and connector.vocab_size is not None


def _instructions(
    loaded: Described, connector: QFormerConnector, prompts: Sequence[str | Messages], names: Sequence[str], marker: str
) -> dict[str, Int[np.ndarray, "T L"]]:
    """Prompts as InstructBLIP's Q-Former reads them, by a tokenizer of its own: instruction_tokens and their mask."""
    folder = Path(loaded.source.get("path", "")) / texts.QFORMER
    if (rules := texts.bert(folder, connector.length, connector.vocab_size)) is None:
        raise ConfigError(
            f"images: the connector reads prompts by a tokenizer of its own, and {folder} is no folder of one: add it, "
            "or give ids and `inputs=` with instruction_tokens"
        )
    if chats := [name for name, prompt in zip(names, prompts) if not isinstance(prompt, str)]:
        raise ConfigError(f"{chats[0]}: the connector reads an instruction: give a text, not a chat")
    rules = dict(rules)
    tokenizer = tokenizers.open(rules.pop("tokenizer"), **rules)
    ids = tokenizer.whole([prompt.replace(marker, "") for prompt in prompts])
    longest = max(map(len, ids))
    if longest > connector.length:
        name = next(name for name, each in zip(names, ids) if len(each) == longest)
        raise ConfigError(f"{name}: is an instruction of {longest} tokens; the connector reads {connector.length}")
    return {
        "instruction_tokens": np.array(
            [[*each, *[tokenizer.pad_id] * (longest - len(each))] for each in ids], np.int32
        ),
        "instruction_mask": np.array([np.arange(longest) < len(each) for each in ids]),
    }


def _operations(loaded: Described) -> Pipeline:
    if loaded.preprocessing is None:
        raise ConfigError(
            f"{loaded.source.get('path', 'the model')}: does not say how images are prepared: add its "
            "preprocessor_config.json, or give ids and `inputs=`"
        )
    return operations.parse(loaded.preprocessing)


def _image_token(loaded: Described, whole: Pipeline) -> str | None:
    """Spells the model's image token: as the operation that spells it says, or by its id."""
    spelt = [given["image_token"] for op in whole.operations if "image_token" in (given := op.arguments)]
    token = loaded.model.image_token if isinstance(loaded.model, VLM) else None
    by_id = [name for name in TOKENS if token is not None and plain.tokenizer_of(loaded).token_id(name) == token]
    return next(iter(spelt + by_id), None)


def _example(name: str, pictures: Sequence[Picture], whole: Pipeline) -> dict[str, Any]:
    """An example with the pictures' pixels, `images` [I, …], after the model's operations on images."""
    example: dict[str, Any] = {"id": name}
    if not pictures:
        return example
    steps = list(whole.operations)
    end = next((i for i, op in enumerate(steps) if op.function.name == "supervise"), len(steps))
    steps = [op for op in steps[:end] if op.reads and set(op.reads) <= PIXELS and op.function.name != "pad"]
    if random := [op.text for op in steps if op.function.random]:
        raise ConfigError(f"images: {random[0]} draws at random, so it is not of an evaluation")
    read = [_read(picture, name) for picture in pictures]
    if len(read) == 1 and "image" in steps[0].reads:
        example |= {"image": read[0]}
    else:
        example |= {"images": read}
        steps = [_of_several(op) for op in steps]
    try:
        for step in steps:
            example = step(example)
    except UnreadableImage as error:
        files = ", ".join(str(picture) for picture in pictures if isinstance(picture, str | Path))
        raise ConfigError(f"{name}: {files}: {error.reason}" if files else str(error)) from error
    if "images" not in example:
        beside = {f"images_{what}": example[what][None] for what in ("patch_mask", "patch_grid") if what in example}
        return {**example, "images": example.pop("image")[None], **beside}
    if len(shapes := sorted({np.shape(image) for image in example["images"]})) > 1:
        raise ConfigError(f"{name}: its images have the shapes {shapes} in the end: the model's operations must resize")
    return {**example, **{what: np.stack(example[what]) for what in ("images", *OF_EACH_IMAGE) if what in example}}


def _of_several(op: Operation) -> Operation:
    """An operation on one image as that on each of several."""
    if op.function.on_image:
        return dataclasses.replace(op, field="images") if op.field == "image" else op
    if op.arguments.get("field") != "image":
        return op
    return Operation(op.text, op.function, (), {**op.arguments, "field": "images"})


def _read(picture: Picture, name: str) -> bytes | Shaped[np.ndarray, "H W C"]:
    """Bytes of a file, or pixels uint8 [H, W, C]. Raises ConfigError that names the file."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        try:
            return Path(picture).read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: image {picture}: cannot be read: {error.strerror or error}") from None
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        ImageOps.exif_transpose(picture).convert("RGBA" if picture.has_transparency_data else "RGB").save(file, "PNG")
        return file.getvalue()
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise ConfigError(
            f"{name}: an image is {pixels.dtype} {list(pixels.shape)}: give a path, a PIL image or uint8 [H, W, C]"
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _count(loaded: Described, example: Mapping[str, Any]) -> int:
    """Image tokens of each image, or tile; places of it in the text, where the model looks at it from there."""
    if "images" not in example or loaded.model.connector.fusion == "cross":
        return 1

    instruction = {"instruction_tokens": np.zeros((1, 1), np.int32)} if _instructed(loaded.model) else {}

    def encoded(variables: Mapping[str, Any], images: np.ndarray | Patches) -> jax.Array:
        return loaded.model.apply(variables, images, **instruction, method="encode_images")

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 1, *leaf.shape[1:]), leaf.dtype), _as_given(example))
    return jax.eval_shape(encoded, dict(loaded.variables), one).shape[2]


def _shapes(images: np.ndarray | Patches) -> list[tuple[int, ...]]:
    return [leaf.shape[1:] for leaf in jax.tree.leaves(images)]


def _as_given(example: Mapping[str, Any]) -> np.ndarray | Patches:
    images = example["images"]
    if "images_patch_mask" not in example:
        return images
    flat = images.reshape(*images.shape[:2], -1)
    return Patches(flat, example["images_patch_mask"], example["images_patch_grid"])


def _inputs(
    examples: Sequence[Mapping[str, Any]], found: Sequence[asking.Asked], names: Sequence[str]
) -> dict[str, Any]:
    """Images of several prompts in one array each, those that are missing masked; nothing if none has an image."""
    given = [_as_given(example) if "images" in example else None for example in examples]
    if (some := next((each for each in given if each is not None), None)) is None:
        return {}
    counts = [image_places.count_of(example) for example in examples]
    most = max(counts)
    for name, each in zip(names, given):
        if each is not None and _shapes(each) != _shapes(some):
            raise ConfigError(f"{name}: its images have another shape than those of {names[0]}: ask one at a time")

    def filled(*leaves: np.ndarray) -> np.ndarray:
        return np.stack([np.pad(x, [(0, most - len(x)), *[(0, 0)] * (x.ndim - 1)]) for x in leaves])

    nothing = jax.tree.map(lambda leaf: leaf[:0], some)
    inputs: dict[str, Any] = {"images": jax.tree.map(filled, *[nothing if x is None else x for x in given])}
    if min(counts) < most:
        inputs["image_mask"] = np.arange(most) < np.array(counts)[:, None]
    if any("image_times" in example for example in examples):
        none = np.zeros(0, np.int32)
        inputs["image_times"] = filled(*[np.asarray(example.get("image_times", none)) for example in examples])
    if any(each.index is not None for each in found):  # vectors of the model's own come behind all images of the batch
        inputs["image_index"] = [
            np.where(each.index >= count * each.each, each.index + (most - count) * each.each, each.index)
            for each, count in zip(found, counts)
        ]
    return inputs
