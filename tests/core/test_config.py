"""Config checking, arguments of config files, durations, registry."""

import dataclasses

import flax.linen as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from vitvlm.core import arguments, config
from vitvlm.core.config import ConfigError
from vitvlm.core.durations import Clock
from vitvlm.core.registry import Registry


@dataclasses.dataclass
class Section:
    patch_size: int
    mask_ratio: float = 0.75


class Module(nn.Module):
    width: int = 8


def test_an_unknown_field_names_its_place_and_the_nearest():
    with pytest.raises(ConfigError, match=r'config\.model\.pach_size: no such field; did you mean "patch_size"\?'):
        config.call(Section, {"pach_size": 4}, "config.model")


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match=r"config\.model: missing field patch_size"):
        config.call(Section, {}, "config.model")


def test_a_section_may_not_set_what_the_caller_gives():
    with pytest.raises(ConfigError, match="patch_size: no such field"):
        config.call(Section, {"patch_size": 4}, "config.model", patch_size=8)


def test_the_fields_that_flax_adds_to_modules_are_not_the_users():
    assert config.call(Module, {"width": 3}, "config.model").width == 3
    for name in ("name", "parent"):
        with pytest.raises(ConfigError, match=f"{name}: no such field"):
            config.call(Module, {name: None}, "config.model")


def test_plain_resolves_references_and_keeps_tuples():
    section = ConfigDict({"size": 8, "rules": (("a", 1),)})
    section.model = ConfigDict({"image_size": section.get_ref("size")})
    section.size = 16
    assert config.plain(section) == {"size": 16, "rules": (("a", 1),), "model": {"image_size": 16}}


def test_a_registry_names_the_nearest_and_refuses_a_second_of_a_name():
    registry = Registry("model")
    registry.register("vit")(Section)
    with pytest.raises(ConfigError, match="model 'vot': no such model; did you mean \"vit\""):
        registry.build("vot", {})
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("vit")(Section)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("S/16", 10, False)),
        ("B/32", ("B/32", 10, False)),
        ("debug", ("S/16", 10, True)),
        ("folder:/a=b/c,debug,epochs=3", ("folder:/a=b/c", 3, True)),
        ("variant=L/16, epochs=5,debug=False", ("L/16", 5, False)),
    ],
)
def test_config_arguments(text, expected):
    if "=b" in text:
        text = "variant=" + text
    args = arguments.parse(text, variant="S/16", epochs=10, debug=False)
    assert (args.variant, args.epochs, args.debug) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("epoch=3", 'did you mean "epochs"'), ("epochs=x", "not of type int"), ("debug=yes", "write debug")],
)
def test_bad_config_arguments(text, message):
    with pytest.raises(ConfigError, match=message):
        arguments.parse(text, variant="S/16", epochs=10, debug=False)


CLOCK = Clock(batch_size=100, train_examples=1000, total_steps=500)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [(7, 7), ("7 steps", 7), ("1 step", 1), ("2 epochs", 20), ("0.25 epochs", 2), ("50_000 examples", 500), ("5%", 25)],
)
def test_durations(duration, steps):
    assert CLOCK.steps(duration, "total") == steps


@pytest.mark.parametrize("duration", ["", "3", "3 weeks", "-3 steps", "nan steps", "3 steps 4", None, 2.5, True, -1])
def test_what_is_no_duration_is_an_error_that_names_the_field(duration):
    with pytest.raises(ConfigError, match=r"config\.total"):
        CLOCK.steps(duration, "config.total")


def test_a_share_of_an_unknown_length_is_an_error():
    with pytest.raises(ConfigError, match="share of the training"):
        Clock(1, 1).steps("5%", "total")


@given(st.integers(1, 10**3), st.integers(1, 4096), st.integers(1, 10**6))
def test_epochs_and_examples_agree(epochs, batch_size, examples):
    clock = Clock(batch_size, examples)
    assert clock.steps(f"{epochs} epochs", "x") == clock.steps(f"{epochs * examples} examples", "x")


@dataclasses.dataclass
class Typed:
    steps: int = 1
    rate: float = 0.1
    clip: float | None = None
    name: str = ""
    fast: bool = False
    size: int | tuple[int, int] = 8
    total: int | str = 1


@pytest.mark.parametrize(
    "fields",
    [{"steps": 2, "rate": 1, "clip": 2, "name": "x", "fast": True, "size": (1, 2), "total": "5%"}, {"clip": None}],
)
def test_values_of_the_annotated_types_pass(fields):
    assert config.call(Typed, fields, "config.x") == Typed(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 1.5}, r"config\.x\.steps: 1\.5 is not a whole number"),
        ({"steps": True}, r"config\.x\.steps: True is not a whole number"),
        ({"rate": "abc"}, r"config\.x\.rate: 'abc' is not a number"),
        ({"clip": "abc"}, r"config\.x\.clip: 'abc' is not a number or None"),
        ({"name": 3}, r"config\.x\.name: 3 is not text"),
        ({"fast": 1}, r"config\.x\.fast: 1 is not True or False"),
        ({"total": None}, r"config\.x\.total: None is not a whole number or text"),
    ],
)
def test_values_of_other_types_are_one_line(fields, message):
    with pytest.raises(ConfigError, match=message):
        config.call(Typed, fields, "config.x")
