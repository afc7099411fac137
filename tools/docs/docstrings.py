"""Docstrings as Markdown: what help() shows plainly and a page would garble. An extension of griffe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe
import latex2mathml.converter

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|obj):`~?([\w.]+)`")
_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_NAMED = re.compile(r"^``[^`]+``(?:(?:, | and |  +)``[^`]+``)*  +\S")
_MATH = re.compile(r"^( *)\.\. math::\n+((?:\1 +\S.*\n?)+)", re.MULTILINE)
_SHARED = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+):")
_SECTION = re.compile(r"^(?:Args|Attributes|Raises|Returns|Yields|Examples?):$")


def _display(match: re.Match[str]) -> str:
    """A formula as a block of its own kind, which the hooks draw."""
    formula = " ".join(line.strip() for line in match[2].splitlines())
    if "&" in formula:
        formula = rf"\begin{{align*}}{formula}\end{{align*}}"
    return f"\n```math\n{formula}\n```\n"


def _role(match: re.Match[str]) -> str:
    """A link, if the reference has that name, else code."""
    name = match[1]
    if name.startswith("v1fast."):
        return f'<autoref identifier="{name}" optional><code>{name.split(".")[-1]}</code></autoref>'
    return f"`{name}`"


def _blocks(lines: list[str]) -> list[str]:
    """Doctests get a fence; lines of names and what they are, a list."""
    out: list[str] = []
    fence = listed = False
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if line.lstrip().startswith(">>>") and not fence:
            indent = line[: len(line) - len(line.lstrip())]
            out += [""] * bool(before.strip() and not _SECTION.match(before.strip())) + [f"{indent}```pycon"]
            fence = True
        if fence and not line.strip():
            out.append(f"{indent}```")
            fence = False
        named = not fence and _NAMED.match(line)
        if named and not listed and before.strip():
            out.append("")
        listed = bool(named) or (listed and bool(line.strip()))
        out.append(re.sub(r"  +", ": ", f"- {line}", count=1) if named else line)
    return [*out, f"{indent}```"] if fence else out


def _one_by_one(lines: list[str]) -> Iterator[str]:
    """Arguments that share a description, ``height, width: of an image``, each with its own."""
    entry: list[str] = []
    names: list[str] = []
    for line in [*lines, ""]:
        continued = entry and len(line) - len(line.lstrip()) > len(entry[0]) - len(entry[0].lstrip())
        if not continued:
            for name in names:
                yield from [_SHARED.sub(rf"\g<1>{name}:", entry[0]), *entry[1:]]
            entry, names = [], []
        found = _SHARED.match(line)
        if found and not continued:
            entry, names = [line], found[2].split(", ")
        elif entry:
            entry.append(line)
        else:
            yield line


def to_markdown(text: str) -> str:
    """A docstring of this project as Markdown with Google's sections."""
    text = _MATH.sub(_display, text)
    text = _INLINE_MATH.sub(lambda match: latex2mathml.converter.convert(match[1]), text)
    text = _ROLE.sub(_role, text)
    return "\n".join(_blocks(list(_one_by_one(text.splitlines()))))


class Docstrings(griffe.Extension):
    """Rewrites each docstring once, when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every object."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
