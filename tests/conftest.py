"""Setup shared by all tests: how programs are compiled, and pages in a real browser.

Nearly all time goes into compiling, and tests compare values: XLA does not optimize, and workers, fresh processes and
runs share what they compiled through a folder of the system's temporary files. oneDNN's programs cannot be kept there:
tests/core/test_compiling.py and a step of tests/jobs/test_configs.py ask for them.
"""

import collections
import gc
import os
import pathlib
import tempfile

import pytest
from playwright.sync_api import sync_playwright

from vitvlm.jobs import simulated

COMPILED = pathlib.Path(tempfile.gettempdir()) / f"vitvlm_tests_{os.getuid()}"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_onednn=false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
simulated.give_threads()

SLOWEST_FILES = 20

BROWSERS = ("/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser")


@pytest.fixture(scope="session")
def browser():
    path = next((path for path in BROWSERS if pathlib.Path(path).exists()), None)
    assert path, f"none of {BROWSERS} is there: install chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser):
    """Opens a file at a width; on leaving, there must have been no complaint and no request but for the file itself."""
    contexts, complaints, requests, opened = [], [], set(), set()

    def open_at(path, width=1200, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.add(request.url))
        opened.add(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == opened


MOST_MAPS = 20_000  # areas of memory of a process; Linux allows 65,530, each compiled program takes some


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs before a process has so many areas of memory that the next one ends it."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax  # which reads the variables above when it is imported

        jax.clear_caches()
        gc.collect()


_seconds: collections.Counter[str] = collections.Counter()


def pytest_runtest_logreport(report):
    _seconds[report.nodeid.partition("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter):
    """The files that take longest, below pytest's own list of tests (`--durations`)."""
    if terminalreporter.config.getoption("durations"):
        terminalreporter.section(f"slowest {SLOWEST_FILES} files")
        for name, seconds in _seconds.most_common(SLOWEST_FILES):
            terminalreporter.write_line(f"{seconds:8.1f}s {name}")
