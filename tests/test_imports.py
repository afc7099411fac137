"""Dependencies point one way: every import, whether made at once, later or for annotations alone, is held to it.

A room is a package or a module right under ``v1fast``. It imports from its own floor and from those below. A module
right under ``v1fast`` whose name begins with an underscore is a helper: it stands just above the highest floor that it
imports from, so that nothing below reaches up through it.
"""

import ast
import functools
import math
from pathlib import Path

import new_processes
import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (  # from the top down
    {"__main__"},
    {"cli"},
    {"benchmarks"},
    {"experiments"},
    {"v1fast"},  # the package itself: what `from v1fast import ...` finds
    {"runs", "normative", "decoding"},
    {"training", "rsa", "distributed", "plots", "insilico", "accelerate", "doctor"},
    {"models", "data", "metrics", "losses"},
    {"readouts"},
    {"functional"},
    {"ops"},
    {"kernels"},
    {"fallback"},
    {"contracts"},
    {"reference"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that few may enter, whatever floor they stand on.
ENTRANCES = {
    "cli": {"__main__"},
    "benchmarks": {"cli"},
    "training": {"cli", "runs", "experiments", "benchmarks"},
    "kernels": {"ops", "benchmarks"},
}


def room_of(module):
    return module.split(".")[1] if "." in module else module


def is_helper(module):
    room = room_of(module)
    return room.startswith("_") and room not in FLOOR


def sources():
    """(module, path, whether it is a package); tests that lie beside the benchmarks are left out."""
    for package, folder in (("v1fast", "v1fast"), ("v1fast.kernels", "kernels"), ("v1fast.benchmarks", "benchmarks")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name.startswith("test_"):
                continue
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            yield ".".join((package, *(parts[:-1] if is_package else parts))), path, is_package


SOURCES = {module: (path, is_package) for module, path, is_package in sources()}
IMPORTERS = {"import_module": "", "benchmark": "v1fast.benchmarks."}  # functions


def base_of(node, module, is_package):
    """What an import-from imports from, by its whole name."""
    if not node.level:
        return node.module
    parts = module.split(".")
    above = parts[: len(parts) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def named(tree, module, is_package):
    """The modules that a source names in imports, and in calls that import by a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, module, is_package)
            full = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else base for name in full)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in IMPORTERS:
                yield f"{IMPORTERS[called]}{node.args[0].value}"


def imported(text, module, is_package=False):
    """The modules of other rooms of v1fast that a source imports."""
    found = {name for name in named(ast.parse(text), module, is_package) if name.split(".")[0] == "v1fast"}
    return {name for name in found if room_of(name) != room_of(module)}


@functools.cache
def imports_of(module):
    path, is_package = SOURCES[module]
    return imported(path.read_text(), module, is_package)


@functools.cache
def floor_of(module):
    """The number of a floor, 0 at the top; of a helper, half a floor above the highest that it imports."""
    if not is_helper(module):
        assert room_of(module) in FLOOR, f"{room_of(module)} has no floor: give it one in FLOORS"
        return FLOOR[room_of(module)]
    below = imports_of(module) if module in SOURCES else ()  # a binary imports nothing
    return min((floor_of(name) - (not is_helper(name)) / 2 for name in below), default=math.inf)


def is_allowed(module, other):
    own, room = room_of(module), room_of(other)
    if room in ENTRANCES and own not in ENTRANCES[room]:
        return False
    return floor_of(module) <= floor_of(other)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_one_way(module):
    assert not [name for name in imports_of(module) if not is_allowed(module, name)]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("v1fast.models.x", "from v1fast.training.fit import fit"),
        ("v1fast.rsa.report", "from v1fast.training import fit"),
        ("v1fast.rsa.report", "import v1fast.training.fit as fitting"),
        ("v1fast.plots", "from .training import fit"),
        ("v1fast.doctor", "def f():\n    from v1fast import cli"),
        ("v1fast.plots", "if TYPE_CHECKING:\n    from v1fast.cli import app"),
        ("v1fast.training.x", "import importlib\nimportlib.import_module('v1fast.benchmarks.one_step')"),
        ("v1fast.doctor", "import_module('v1fast.benchmarks')"),
        ("v1fast.readouts.x", "from v1fast import models"),
        ("v1fast.ops.x", "from v1fast import functional"),
        ("v1fast.ops.x", "from v1fast import release_memory"),
        ("v1fast.functional", "from v1fast.kernels import rdm"),
        ("v1fast.reference.x", "from v1fast.contracts import _checks"),
        ("v1fast.contracts.x", "from v1fast.ops import _define"),
        ("v1fast.kernels.x", "from v1fast.ops import rdm"),
        ("v1fast.kernels.x", "from v1fast import readouts"),
    ],
)
def test_an_import_that_points_upward_is_noticed(module, text):
    (name,) = imported(text, module)
    assert not is_allowed(module, name)


def test_nothing_reaches_up_through_a_helper(tmp_path, monkeypatch):
    (tmp_path / "_x.py").write_text("from v1fast.functional import rdm")
    monkeypatch.setitem(SOURCES, "v1fast._x", (tmp_path / "_x.py", False))
    assert is_allowed("v1fast.readouts.x", "v1fast._x")
    assert not is_allowed("v1fast.functional", "v1fast._x")
    assert is_allowed("v1fast.reference.x", "v1fast._version")


IMPORT = """
import importlib
for module in {modules}:
    try:
        importlib.import_module(module)
    except ImportError as error:  # an extra that is not installed, or too old a Triton
        if (error.name or "torch").partition(".")[0] in ("v1fast", "torch"):
            raise
        print(f"{{module}}: {{error}}")
"""


@pytest.mark.once
def test_every_module_is_imported():
    """With each torch in the range: what some torch lacks is asked for where it is used, not where it is named."""
    modules = [name for name in SOURCES if name != "v1fast.__main__"]
    print(*new_processes.run([IMPORT.format(modules=modules)]))
