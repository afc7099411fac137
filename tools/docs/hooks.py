"""What `make docs` does beside mkdocs: formulas, and two checks. Hooks of mkdocs.

Every public name has to be in the reference. No page may load anything from elsewhere.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.reference")  # a warning ends a strict build

ROOT = Path(__file__).parents[2]
# Rooms that users do not enter: how it is computed, and what is called by a command.
INTERNAL = {"benchmarks", "cli", "contracts", "doctor", "fallback", "kernels", "reference"}

_LOADED = re.compile(
    r"<(?:script|img|iframe|source|link(?! rel=.?(?:canonical|next|prev)))[^>]*?(?:src|href)=.?(?:https?:)?//[^>]*>"
)


def formula(source: str, *rest: Any, **options: Any) -> str:
    """A block of LaTeX, ```math, as MathML: browsers draw it without a script."""
    upright = re.sub(r"\\mathrm\{(\w\w+)\}", r"\\operatorname{\1}", source)  # letters of one name, not a product
    return f'<div class="formula">{latex2mathml.converter.convert(upright, display="block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Formulas are blocks of their own kind."""
    fences = [{"name": "math", "class": "formula", "format": formula}]
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = fences
    return config


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Pages are read without a network, too."""
    for found in _LOADED.findall(output):
        log.warning("%s: is loaded from elsewhere: %s", page.file.src_uri, found)
    return output


def public_names(package: griffe.Module) -> Iterator[tuple[str, str]]:
    """What each public module exports, but for modules: its name, and the name that it was defined by."""
    for name, member in package.members.items():
        if name.startswith("_") or name in INTERNAL or member.is_alias or not member.is_module:
            continue
        exported = member.exports or [
            other
            for other, value in member.members.items()
            if not other.startswith("_") and not value.is_alias and (value.is_class or value.is_function)
        ]
        for other in map(str, exported):
            if not member[other].is_module:
                yield member[other].path, member[other].canonical_path
            elif member.imports[other].endswith(f".{other}.{other}"):  # a function that hides the module of its name
                yield member.imports[other], member.imports[other]
    for found in (package[str(name)] for name in package.exports or ()):
        if found.is_function or found.is_class:
            yield found.path, found.canonical_path


def on_env(env: Any, config: MkDocsConfig, files: Files) -> None:
    """When all pages are made, look each public name up among their anchors."""
    anchors = set(config.plugins["autorefs"]._primary_url_map)
    package = griffe.load("v1fast", search_paths=[ROOT], resolve_aliases=True)
    for name in sorted(name for name, defined in set(public_names(package)) if not {name, defined} & anchors):
        log.warning("%s: public, and not in the API reference; has it a docstring, its module a page?", name)
