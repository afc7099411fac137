"""What `make docs` checks beside links: that every public name is in the reference. Hooks of mkdocs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files

log = logging.getLogger("mkdocs.hooks.reference")  # a warning ends a strict build

ROOT = Path(__file__).parents[2]
# Rooms that users do not enter: how it is computed, and what is called by a command.
INTERNAL = {"benchmarks", "cli", "contracts", "doctor", "fallback", "kernels", "reference"}


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
