"""Blocks of code on the pages of the documentation, and how they are run."""

import contextlib
import io
import re
import textwrap
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r'^( *)```python(?: title="([^"]*)")?\n(.*?)^\1```', re.MULTILINE | re.DOTALL)


def blocks(page, title=None):
    """Those with a title; without, those that a reader can run, one after another. Compiled with the page's lines."""
    path = DOCS / f"{page}.md"
    text = path.read_text()
    for match in _BLOCK.finditer(text):
        if match[2] == title:
            line = text.count("\n", 0, match.start(3))
            yield compile("\n" * line + textwrap.dedent(match[3]), str(path), "exec")


def run(code, names):
    """Run a block in quiet, with the names of those before."""
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return names
