"""The shape of the code: files of one idea, and nothing found out about a task, model or evaluator by probing it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("vitvlm", "scripts", "configs", "tests")
LONGEST = 400  # lines
PROBED = ("task", "model", "encoder", "tower", "backbone", "teacher", "student", "evaluator", "encoded", "vit")


def probes(source: str) -> list[str]:
    """Lists hasattr(model, …) and getattr(model, name, default) of what is called a model, a task and so on."""
    found = []
    for node in ast.walk(ast.parse(source)):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called == "hasattr" or (called == "getattr" and len(node.args) == 3):
            subject = ast.unparse(node.args[0])
            last = subject.replace("(", ".").rstrip(")").split(".")[-1]
            if last in PROBED or any(name in subject for name in ("TASKS", "MODELS", "EVALUATORS")):
                found.append(ast.unparse(node))
    return found


def test_nothing_is_found_out_by_probing():
    """Tasks, models and evaluators have bases with defaults: `tasks.base`, `models.facts`, `evaluation.base`."""
    found = {str(path.relative_to(ROOT)): probes(path.read_text()) for path in ROOT.glob("vitvlm/**/*.py")}
    assert not {name: calls for name, calls in found.items() if calls}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("hasattr(job.task, 'pairwise')", 1),
        ("getattr(loaded.model, 'num_classes', 0)", 1),
        ("getattr(TASKS.get(name), 'labelled', False)", 1),
        ("getattr(model, name)", 0),
        ("hasattr(os, 'SCHED_IDLE')", 0),
    ],
)
def test_the_search_finds_probes(source, count):
    assert len(probes(source)) == count


def test_no_file_is_longer_than_400_lines():
    """A longer one is asking to be two. Pages' scripts and styles count too."""
    files = [
        path
        for folder in FOLDERS
        for kind in ("py", "sh", "js", "css", "html")
        for path in (ROOT / folder).rglob(f"*.{kind}")
    ]
    assert len(files) > 500
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: count for name, count in lines.items() if count > LONGEST}
