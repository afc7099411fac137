"""What the documentation shows runs: docstrings' examples, pages for newcomers, commands. `make docs` checks links."""

import contextlib
import doctest
import importlib
import io
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for path in sorted((ROOT / "v1fast").rglob("*.py"))
}
MODULES = [module for module, text in SOURCES.items() if re.search(r"^ *>>> ", text, re.MULTILINE)]
RUN = ["quickstart", "from-neuralpredictors", "from-openretina", "from-sensorium", "rsatoolbox"]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)  # one with a title is not run
COMMAND = re.compile(r"^\s*\$? ?v1fast ([a-z][^\n#]*)", re.MULTILINE)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
WRITTEN = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_hold(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed


def run_page(page):
    """All Python blocks of a page, one after another, as a reader would."""
    text, names = page.read_text(), {}
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(2))
        code = compile("\n" * line + textwrap.dedent(match[2]), str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
    return names


@pytest.mark.parametrize("page", RUN)
def test_pages_for_newcomers_run(page, tmp_path, monkeypatch):
    pytest.importorskip("rsatoolbox")
    monkeypatch.chdir(tmp_path)
    names = run_page(DOCS / f"{page}.md")
    assert names, "there is something to run"


def commands():
    """(page, words) of each `v1fast ...` in a block of console."""
    for page in WRITTEN:
        for block in CONSOLE.finditer(page.read_text()):
            for match in COMMAND.finditer(block[1]):
                yield page.name, shlex.split(match[1])


def unknown(words):
    """What the command line does not have: a command, or options of it."""
    import click
    import typer

    from v1fast.cli import app

    command = typer.main.get_command(app)
    words = list(words)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
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


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(script, tmp_path):
    import subprocess

    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, capture_output=True, timeout=1200)
    assert list(tmp_path.rglob("*.png")), "it draws"
