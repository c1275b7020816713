"""First lines of docstrings: each is true on its own and begins with a verb or with what it names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("vitvlm", "scripts", "configs", "tests")

# "What a source is", "Whether it fits": the noun or the verb is missing.
QUESTIONS = "what whatever which who whom whose where wherever when whenever whether why how is are was"
# "Of the encoder", "As it was asked for": these continue a sentence that is not there.
CONTINUED = (
    "of as from by in into on onto for with without within to at about around above after against among before behind "
    "below beneath beside besides between beyond during except inside like outside over since than through till under "
    "until upon via if unless because although though while so and or nor but else otherwise also"
)
# "Those of them that have a position", "Its config": the noun is somewhere else.
PRONOUNS = "it its itself they them their theirs he she his her this that these those"
MID_SENTENCE = {*QUESTIONS.split(), *CONTINUED.split(), *PRONOUNS.split()}
# "Fields:", "(height, width) of …": nothing is named at all.
NAMELESS = r"(?:args|attributes|fields|raises|returns|yields):|[(\[{]"
FIRST_WORD = re.compile(rf"(?:{'|'.join(MID_SENTENCE)})\b|{NAMELESS}", re.IGNORECASE)
PERHAPS = re.compile(rf"""^\s*[ru]?["']+\s*(?:{FIRST_WORD.pattern})""", re.IGNORECASE | re.MULTILINE)


def in_mid_sentence(text: str) -> Iterator[tuple[int, str]]:
    """Yields line number and first line of each docstring of a module that begins in mid-sentence.

    Those of test functions do not count: they continue the name of their test.
    """
    if not PERHAPS.search(text):
        return  # spares the parsing of most files
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.Module) or not node.name.startswith("test_"):
            docstring = ast.get_docstring(node) or ""
            if FIRST_WORD.match(docstring):
                yield node.body[0].lineno, docstring.splitlines()[0]


def test_first_lines_stand_alone():
    """A first line starts with a verb ("Returns the width …", "Tells whether …") or with the noun that it names."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 300
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in files
        for number, line in in_mid_sentence(path.read_text(encoding="utf-8"))
    ]
    assert not found, "first lines begin in mid-sentence:\n" + "\n".join(found)


def test_a_line_in_mid_sentence_is_found():
    code = '"""Of the encoder."""\nclass A:\n    def f(self):\n        r"""\n        Whether: it fits.\n        """\n'
    assert list(in_mid_sentence(code)) == [(1, "Of the encoder."), (4, "Whether: it fits.")]
    code = 'class A:\n    """\n    Fields:\n      a: a field."""\ndef f():\n    """(h, w) of a grid."""\n'
    assert [line for _, line in in_mid_sentence(code)] == ["Fields:", "(h, w) of a grid."]
    code = '"""Office."""\ndef width():\n    """Returns it."""\ndef test_width():\n    """As published."""\n'
    assert not list(in_mid_sentence(code + "ITS = 'its width'\n"))
