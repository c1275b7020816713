"""The operation language: literals only, errors that name the nearest, and nothing that is ever evaluated."""

import ast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data.operations import parse


def test_operations_and_their_arguments_are_read_in_order():
    pipeline = parse(" decode(1) | random_crop((28, 30), padding=2)|flip | normalize(0.5, std=(1.0,)) ")
    assert [op.function.name for op in pipeline.operations] == ["decode", "random_crop", "flip", "normalize"]
    assert [op.positional for op in pipeline.operations] == [(1,), ((28, 30), 2), (), (0.5, (1.0,))]
    only_named = parse("random_resized_crop(8, method='bilinear')|flip(1)").operations
    assert only_named[0].positional == (8,) and only_named[0].named == {"method": "bilinear"}
    assert only_named[1].positional == (1.0,) and isinstance(only_named[1].positional[0], float)


@pytest.mark.parametrize(
    "text, message",
    [
        ("decode|flp", "operation 'flp': no such operation; did you mean \"flip\""),
        ("decode|resize", r"missing a required argument: 'size'; it is resize\(size: int \| tuple, method: str"),
        ("decode|resize(8, antialias=True)", r"unexpected keyword argument 'antialias'; it is resize\("),
        ("decode|resize('8')", "size='8' is not int | tuple"),
        ("decode|flip(True)", "probability=True is not float"),
        ("decode|resize(2.0)", "size=2.0 is not int | tuple"),
        ("decode|keep(3)", "names=3 is not str"),
        ("decode||flip", "not operations joined by"),
        ("decode|(flip|flip)", "neither a name nor a call"),
        ("decode,flip", "neither a name nor a call"),
        ("decode & flip", "neither a name nor a call"),
        ("os.system('true')", "neither a name nor a call"),
        ("decode|resize(__import__('os').getpid())", "is not a number, string, tuple"),
        ("decode|resize(size)", "is not a number, string, tuple"),
        ("decode|resize(*[8])", "is not a number, string, tuple"),
        ("decode|resize(**{'size': 8})", r"\*\* is not allowed"),
        ("decode|flip(rng=None)", "unexpected keyword argument 'rng'"),
        ("decode|flip(image=None)", "unexpected keyword argument 'image'"),
        ("", "write a string such as"),
        (None, "write a string such as"),
        (7, "write a string such as"),
        ("(" * 500, "not operations joined by"),
        ("decode(" + "-" * 5000 + "1)", "nested too deeply|not operations joined by"),
        ("decode" + "|decode" * 3000 + "|x", "at most 10,000 are read"),
        ("decode(\0)", "not operations joined by"),
    ],
)
def test_what_is_no_pipeline_is_one_line_of_error(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


ATOMS = st.sampled_from(
    [
        "decode",
        "resize",
        "flip",
        "normalize",
        "x",
        "1",
        "'a'",
        "(1, 2)",
        "None",
        "lambda: 1",
        "a.b",
        "f()",
        "[i for i in x]",
    ]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("|".join),
        st.tuples(inner, inner).map(lambda p: f"{p[0]}({p[1]})"),
        st.tuples(inner, inner).map(lambda p: f"{p[0]}(size={p[1]})"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]} if {p[1]} else 0)"),
        inner.map(lambda e: f"(y := {e})"),
        inner.map(lambda e: f"f'{{{e}}}'"),
    ),
    max_leaves=6,
)


def _is_literal(value):
    if isinstance(value, tuple | list | set | frozenset):
        return all(_is_literal(item) for item in value)
    if isinstance(value, dict):
        return all(_is_literal(item) for pair in value.items() for item in pair)
    return value is None or isinstance(value, int | float | complex | str | bytes | bool)


@given(st.text() | EXPRESSIONS)
@example("decode(__import__('os').abort())")
@example("resize((lambda: 8)())")
def test_any_text_is_a_pipeline_of_literals_or_a_config_error(text):
    try:
        pipeline = parse(text)
    except ConfigError:
        return
    for operation in pipeline.operations:
        arguments = (*operation.positional, *operation.named.values())
        assert all(_is_literal(argument) for argument in arguments)
        call = ast.parse(operation.text, mode="eval").body
        written = [*call.args, *(k.value for k in call.keywords)] if isinstance(call, ast.Call) else []
        literals = [ast.literal_eval(node) for node in written]
        assert len(literals) == len(arguments) and all(argument in literals for argument in arguments)
