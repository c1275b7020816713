"""No code names what is not defined. Ruff's rule F821 is off: it takes the letters of jaxtyping's shapes for names."""

import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent


def undefined(*paths):
    """Yields "file:line: message" of each undefined name that stands in code, not in a string."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--output-format=json", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    code = {}
    for found in json.loads(done.stdout):
        path = found["filename"]
        if path not in code:
            tokens = tokenize.generate_tokens(io.StringIO(Path(path).read_text()).readline)
            code[path] = {token.start for token in tokens if token.type == tokenize.NAME}
        place = found["location"]
        if (place["row"], place["column"] - 1) in code[path]:
            yield f"{path}:{place['row']}: {found['message']}"


def test_no_undefined_names():
    assert not list(undefined("vitvlm", "scripts", "configs", "tests"))


def test_an_undefined_name_is_found(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text("def double(x: \"Float[Array, 'B N']\"):\n    return y\n")
    (found,) = undefined(str(file))
    assert "sample.py:2" in found and "`y`" in found
