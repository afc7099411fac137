"""What the documentation shows runs: docstrings' examples, pages for newcomers, commands. `make docs` checks links."""

import doctest
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for path in sorted((ROOT / "v1fast").rglob("*.py"))
}
MODULES = [module for module, text in SOURCES.items() if re.search(r"^ *>>> ", text, re.MULTILINE)]
RUN = ["quickstart", "from-neuralpredictors", "from-openretina", "from-sensorium", "rsatoolbox"]
COMMAND = re.compile(r"^\s*\$? ?v1fast ([a-z][^\n#]*)", re.MULTILINE)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
WRITTEN = [*sorted(pages.DOCS.rglob("*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_hold(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("page", RUN)
def test_pages_for_newcomers_run(page, tmp_path, monkeypatch):
    pytest.importorskip("rsatoolbox")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in pages.blocks(page):
        pages.run(block, names)
    assert names, "there is something to run"


def commands():
    """(page, words) of each `v1fast ...` in a block of console."""
    for page in WRITTEN:
        for block in CONSOLE.finditer(page.read_text()):
            for match in COMMAND.finditer(re.sub(r"\\\n *", "", block[1])):  # lines that go on
                yield page.name, shlex.split(match[1])


def unknown(words):
    """What the command line does not have: a command, or options of it."""
    import typer

    from v1fast.cli import app

    command = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        name = words.pop(0)
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options |= {"--help"}
    return [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in options]


def test_commands_exist():
    pytest.importorskip("typer")
    found = list(commands())
    assert len(found) > 20
    assert not {(page, *words): missing for page, words in found if (missing := unknown(words))}


def test_a_command_that_is_gone_is_noticed():
    pytest.importorskip("typer")
    assert unknown(["fitt", "animal1"]) == ["fitt"]
    assert unknown(["fit", "animal1", "--epoch", "3"]) == ["--epoch"]
    assert unknown(["data", "shown"]) == ["shown"]


DOCSTRING = """First line; see :func:`v1fast.restore` and :func:`other`.

.. math::
    a &= b \\\\
    c &= d

Args:
    height, width: of an image,
        in pixels.

>>> 1 + 1
2
"""
PAGE = """First line; see <autoref identifier="v1fast.restore" optional><code>restore</code></autoref> and `other`.


```math
\\begin{align*}a &= b \\\\ c &= d\\end{align*}
```

Args:
    height: of an image,
        in pixels.
    width: of an image,
        in pixels.

```pycon
>>> 1 + 1
2
```
"""


def test_docstrings_become_markdown():
    for needed in ("griffe", "latex2mathml"):  # with what `make docs` installs
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "tools" / "docs" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.to_markdown(DOCSTRING).split() == PAGE.split()


EXAMPLES = pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)


@EXAMPLES
def test_examples_are_written_in_cells(script):
    """Text and code by turns, of which `make notebooks` makes a notebook."""
    kinds = re.findall(r"^# %%(.*)$", script.read_text(), re.MULTILINE)
    assert set(kinds) == {"", " [markdown]"}
    assert script.read_text().startswith("# %% [markdown]\n# # ")


@pytest.mark.slow
@EXAMPLES
def test_examples_run(script, tmp_path):
    import subprocess

    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, capture_output=True, timeout=1200)
    assert list(tmp_path.rglob("*.png")), "it draws"
