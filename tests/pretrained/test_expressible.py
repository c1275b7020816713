"""Every exporter and every field of its model: what it names round-trips, anything else is refused by name."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exporters import COMES_TO, EXPORTERS, LENGTH, OTHERS, SAME_RESULT, VIT

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.models.bert import Bert, BertDecoder
from vitvlm.models.blip2 import Blip2QFormer
from vitvlm.models.decoder import Decoder
from vitvlm.models.naflex import NaFlex
from vitvlm.models.registry import module_fields
from vitvlm.models.t5 import T5
from vitvlm.models.text import TextTransformer
from vitvlm.models.vlm import VLM
from vitvlm.nn.patches import Patches
from vitvlm.pretrained import huggingface, open_clip, timm, vit
from vitvlm.pretrained.expressible import ANY, HOW, IN_TRAINING, Expressible, anything


def build(exporter, changes):
    """The exporter's model with changes, by their paths in it."""
    looped = {} if exporter.model in ("swin", "resnet", "efficientnet") else {"scan": False}
    model = models.build(exporter.model, **exporter.fields, **looped)
    for path, value in changes.items():
        model = changed(model, path.split("."), value)
    return model


def changed(model, names, value):
    name, *rest = names
    return model.clone(**{name: changed(getattr(model, name), rest, value) if rest else value})


def inputs_of(model):
    """Returns what a model is called with; each image and text alike."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, *_size(model), 3)).astype(np.float32)
    texts = (np.arange(LENGTH if not hasattr(_text(model), "length") else _text(model).length)[None] + 1) % 8
    if isinstance(model, TextTransformer | Bert | BertDecoder | Decoder | T5):
        return (texts,)
    image = getattr(model, "image", model)
    if isinstance(image, NaFlex):
        p, q = (image.patch_size,) * 2 if isinstance(image.patch_size, int) else image.patch_size
        patches = rng.normal(size=(1, 4, p * q * 3)).astype(np.float32)
        images = Patches(jnp.asarray(patches), jnp.ones((1, 4), bool), jnp.full((1, 2), 2, jnp.int32))
    return (images, texts) if hasattr(model, "text") else (images,)


def _size(model):
    size = getattr(getattr(model, "vit", getattr(model, "image", model)), "image_size", 16)
    return (size, size) if isinstance(size, int) else tuple(size)


def _text(model):
    return getattr(model, "text", model)


def random_variables(model):
    rng = np.random.default_rng(1)
    rngs = {name: jax.random.key(0) for name in ("params", "mask")}
    shapes = jax.eval_shape(model.init, rngs, *inputs_of(model))
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32), dict(shapes))


def named(expressible, prefix=""):
    """Each named field by its path, and the values that it may have."""
    for name, values in expressible.fields.items():
        if isinstance(values, Expressible):
            yield from named(values, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values


def unnamed(expressible, model, prefix=""):
    """Each other field by its path, with a module in which it has another value than by default."""
    for name in module_fields(expressible.kind):
        values = expressible.fields.get(name)
        if isinstance(values, Expressible):
            for path, inner in unnamed(values, getattr(model, name), f"{prefix}{name}."):
                yield path, model.clone(**{name: inner})
        elif values is None and name not in HOW:
            default = getattr(model, name)
            yield f"{prefix}{name}", model.clone(**{name: flipped(default)})


def flipped(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another" if isinstance(value, str) else 1


def get(model, path):
    for name in path.split("."):
        model = getattr(model, name)
    return model


def round_trip(exporter, model, path, folder, monkeypatch):
    """Writes the model by this exporter alone, reads it, and compares fields, variables and, where fields differ that
    should make no difference, outputs."""
    for module in (huggingface, timm, open_clip):
        if module.__name__.endswith({"hf": "huggingface"}.get(exporter.format, exporter.format)):
            own = {n: each for n, each in module.FAMILIES.items() if each.expressible is exporter.family.expressible}
            monkeypatch.setattr(module, "FAMILIES", own)
    variables = random_variables(model)
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), folder, exporter.format)
    back = pretrained.open(folder)
    written, read = flatten(variables), flatten(back.variables)
    assert written.keys() == read.keys()
    for name, leaf in written.items():
        np.testing.assert_allclose(np.asarray(read[name]), leaf, rtol=1e-6, err_msg=f"{path}: {name}")
    other = {each for each in fields_of(model) if differs(comes_to(model, each), comes_to(back.model, each))}
    assert {each.rpartition(".")[2] for each in other} <= SAME_RESULT, (path, other)
    if {each.rpartition(".")[2] for each in other} - {"scale_init", "bias_init"}:
        variables = jax.tree.map(np.asarray, dict(back.variables))
        found, expected = (
            each.apply(variables, *inputs_of(model), rngs={"mask": jax.random.key(0)}) for each in (back.model, model)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def comes_to(model, path):
    *parts, name = path.split(".")
    module = get(model, ".".join(parts)) if parts else model
    found = COMES_TO.get(name, name)
    return getattr(module, found if hasattr(type(module), found) else name)


def fields_of(model, prefix=""):
    for name in module_fields(type(model)):
        value = getattr(model, name)
        if hasattr(value, "apply") and hasattr(value, "scope"):
            yield from fields_of(value, f"{prefix}{name}.")
        elif name not in HOW:
            yield f"{prefix}{name}"


def differs(first, second):
    """Tells whether two values of a field differ: a number stands for a pair of equal ones."""
    if isinstance(first, tuple) and isinstance(second, int):
        return first != (second,) * len(first)
    if isinstance(second, tuple) and isinstance(first, int):
        return second != (first,) * len(second)
    if isinstance(first, float) and isinstance(second, float):
        return not np.isclose(first, second, rtol=1e-6)
    return first != second


def test_all_exporters_are_tested():
    families = [family for module in (huggingface, timm, open_clip) for family in module.FAMILIES.values()]
    # These are made of parts that are here; what of them cannot be said, the tests of their parity see.
    every = {id(family.expressible) for family in families if family.kind not in (VLM, Blip2QFormer)}
    assert every == {id(each.family.expressible) for each in EXPORTERS.values()}


@pytest.mark.parametrize("exporter", EXPORTERS.values(), ids=EXPORTERS)
def test_fields_that_are_not_named_are_refused(exporter):
    model = build(exporter, {})
    exporter.family.expressible.check(model)
    paths = []
    for path, changed in unnamed(exporter.family.expressible, model):
        paths.append(path)
        value = get(changed, path)
        if path.rpartition(".")[2] in IN_TRAINING:
            exporter.family.expressible.check(changed)
            assert exporter.family.expressible.left_out(changed) == [f"{path} = {value!r}"]
            continue
        with pytest.raises(ConfigError) as refused:
            exporter.family.described(changed, {})
        assert f"{path} = {value!r}" in str(refused.value), path
    assert paths or exporter.model == "swin"  # all of Swin's are named


def changes(exporter, base, path):
    """Changes of one field, to each other value; what has to change with it changes too."""
    for value in OTHERS[path.rpartition(".")[2]]:
        now = get(base, path)
        strict = isinstance(now, tuple) or path.endswith("heads")  # others take a number or a pair
        if differs(value, now) and (isinstance(value, tuple) == isinstance(now, tuple) or not strict):
            yield {**exporter.companions.get(path, {}), path: value}


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS.values(), ids=EXPORTERS)
def test_fields_that_are_named_round_trip(exporter, tmp_path, monkeypatch):
    expressible, number = exporter.family.expressible, itertools.count()
    base = build(exporter, {})
    fields = dict(named(expressible))
    together = [path for path, values in fields.items() if values is ANY and path not in exporter.companions]
    if together:
        all_at_once = {path: value for each in together for path, value in next(changes(exporter, base, each)).items()}
        round_trip(exporter, build(exporter, all_at_once), together, tmp_path / "together", monkeypatch)
    for path, values in fields.items():
        if path in together:
            continue
        passed = refused = 0
        for change in changes(exporter, base, path):
            model = build(exporter, change)
            if problems := dict(expressible.problems(model)):
                assert values is not ANY, (path, problems)
                refused += path in problems
                continue
            try:
                random_variables(model)
            except (ConfigError, ValueError, TypeError):  # the model itself refuses the value
                continue
            round_trip(exporter, model, path, tmp_path / str(next(number)), monkeypatch)
            passed += 1
        assert passed or (refused and values is not ANY), path


def test_what_is_named_has_to_be_a_field():
    with pytest.raises(TypeError, match="CLIP: widht: no field of TextTransformer, or required"):
        Expressible("CLIP", TextTransformer, anything("width", "depth", "heads", "mlp_width", "vocab_size", "length",
                                                      "widht"))  # fmt: skip
    with pytest.raises(TypeError, match="CLIP: length, vocab_size: no field of"):
        Expressible("CLIP", TextTransformer, anything("width", "depth", "heads", "mlp_width"))


def test_an_exporter_without_names_is_no_exporter():
    with pytest.raises(TypeError, match="has to name the fields"):
        dataclasses.replace(vit.CLASSIFIER, expressible=None)


def test_what_acts_in_training_alone_is_left_out_and_named(tmp_path, caplog):
    """The weights answer as before; what the format can say beside it is still said."""
    model = models.build("vit", **VIT, scan=False, drop_path=0.1, dropout=0.2)
    variables = random_variables(model)
    with caplog.at_level("WARNING"):
        pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), tmp_path)
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        "format hf: ViT has no drop_path = 0.1: left out, as training alone needs it"
    ]
    back = pretrained.load(tmp_path)
    assert (back.model.drop_path, back.model.dropout) == (0.0, 0.2)
    images = inputs_of(model)[0]
    found, expected = (
        each.apply(vars_, images).tokens for each, vars_ in ((back.model, back.variables), (model, variables))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_matters_is_still_refused_beside_it(tmp_path):
    model = models.build("vit", **VIT, scan=False, drop_path=0.1, qk_norm=True)
    with pytest.raises(ConfigError, match=r"has no qk_norm = True") as refused:
        pretrained.save(pretrained.Pretrained(model, random_variables(model), None, None, {}), tmp_path)
    assert "drop_path" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", sorted(IN_TRAINING))
def test_what_is_called_training_alone_changes_nothing_in_use(field):
    """Each field of that list, in every model that has it: with train=False the output is the same to the bit."""
    tested = 0
    for exporter in EXPORTERS.values():
        model = build(exporter, {})
        for path in [each for each in fields_of(model) if each.rpartition(".")[2] == field]:
            if exporter.model in ("vit", "bert", "text", "resnet", "efficientnet", "swin") and tested < 3:
                variables = random_variables(model)
                other = changed(model, path.split("."), 0.3)
                found, expected = (jax.jit(each.apply)(variables, *inputs_of(model)) for each in (other, model))
                jax.tree.map(np.testing.assert_array_equal, found, expected)
                tested += 1
    assert tested or field == "embed_dropout"  # of language models
