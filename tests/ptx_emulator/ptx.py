"""Parses PTX text into kernels, their parameters, memory and statements."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import UnsupportedPtx

_NO_EFFECT = re.compile(r"\s*\.(loc|file|version|target|address_size|pragma)\b")
_ENTRY = re.compile(r"(?:\.(?:visible|weak)\s+)*\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", re.DOTALL)
_ENTRY_DIRECTIVES = re.compile(r"\.(reqntid|maxntid|minnctapersm|maxnreg)\s+[\d, ]+")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.([busf]\d+)(?:\s+\.ptr)?(?:\s+\.(?:global|shared|const|local))?"
    r"(?:\s+\.align\s+\d+)?\s+([\w$]+)(\[\d+\])?"
)
_SYMBOL = re.compile(
    r"(?P<link>(?:\.(?:extern|visible|weak|common)\s+)*)\.(?P<space>shared|global|const|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>[busf]\d+)\s+(?P<name>[\w$]+)\s*(?:\[(?P<count>\d*)\])?"
    r"(?:\s*=\s*\{?(?P<values>[^{}]*)\}?)?"
)
_LABEL = re.compile(r"([\w$.]+):(?!:)\s*")
_SOURCE = re.compile(r"\s*\.loc\b.*//\s*(\S+?:\d+)")


@dataclass(frozen=True)
class Statement:
    """A statement of a kernel's body: an instruction, a declaration, a label with its colon, or a brace."""

    text: str
    line: int  # of the PTX text, from 1


@dataclass(frozen=True)
class Symbol:
    """A named array in memory."""

    space: str
    size: int  # in bytes
    align: int
    data: bytes | None  # its initial contents
    extern: bool


@dataclass
class Kernel:
    """One ``.entry``."""

    name: str
    parameters: list[tuple[str, str]]  # (type, name)
    threads: int | None  # of .reqntid
    body: list[Statement]
    symbols: dict[str, Symbol]


def parse(text: str) -> list[Kernel]:
    """Return all kernels of a PTX module."""
    text = text.split("\t.section", 1)[0]  # debug information comes last
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    text = "\n".join("" if _NO_EFFECT.match(line) else line.split("//")[0] for line in text.split("\n"))
    kernels: list[Kernel] = []
    symbols: dict[str, Symbol] = {}
    position = 0
    while entry := _ENTRY.search(text, position):
        _module_level(text[position : entry.start()], symbols)
        end = _closing_brace(text, entry.end())
        body = list(_statements(text[entry.end() : end], text.count("\n", 0, entry.end()) + 1))
        kernels.append(Kernel(entry[1], _parameters(entry[2]), _threads(entry[3]), body, symbols))
        position = end + 1
    _module_level(text[position:], symbols)
    return kernels


def sources(text: str) -> list[str]:
    """Return the source of each line of PTX, such as ``readout.py:48``, as far as Triton records it."""
    where, result = "", [""]
    for line in text.split("\n"):
        if match := _SOURCE.match(line):
            where = match[1]
        result.append(where)
    return result


def symbol(declaration: str) -> tuple[str, Symbol] | None:
    """Return the name and meaning of a declaration such as ``.shared .align 16 .b8 buffer[64]``."""
    match = _SYMBOL.fullmatch(declaration)
    if not match:
        return None
    each = int(match["type"][1:]) // 8
    count = 1 if match["count"] is None else int(match["count"] or 0)
    data = _initial(match["type"], match["values"], count) if match["values"] is not None else None
    space = "global" if match["space"] == "const" else match["space"]
    align = int(match["align"] or each)
    return match["name"], Symbol(space, each * count, align, data, "extern" in match["link"])


def _initial(kind: str, values: str, count: int) -> bytes:
    each = int(kind[1:]) // 8
    numbers = [number(value.strip(), kind) for value in values.split(",")]
    return b"".join(n.to_bytes(8, "little")[:each] for n in numbers).ljust(each * count, b"\0")


def number(text: str, kind: str = "b64") -> int:
    """Return the 64 bits of a constant that is an operand of type ``kind``."""
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        bits = int(match[1], 16)
        return _double(struct.unpack("<f", struct.pack("<I", bits))[0]) if kind == "f64" else bits
    if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
        bits = int(match[1], 16)
        return _single(struct.unpack("<d", struct.pack("<Q", bits))[0]) if kind == "f32" else bits
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|[1-9]\d*|0)U?", text):
        return int(text.rstrip("U"), 0) & (2**64 - 1)
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?", text) and kind in ("f32", "f64"):
        return _single(float(text)) if kind == "f32" else _double(float(text))
    raise UnsupportedPtx(f"constant {text!r} of type {kind}")


def _single(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _double(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    raise UnsupportedPtx("a kernel's body does not end")


def _module_level(text: str, symbols: dict[str, Symbol]) -> None:
    for declaration in text.split(";"):
        declaration = declaration.strip()
        if not declaration or re.match(r"\.extern\s+\.func\b", declaration):
            continue
        found = symbol(declaration)
        if not found:
            raise UnsupportedPtx(f"at module level: {declaration[:80]!r}")
        symbols[found[0]] = found[1]


def _parameters(text: str) -> list[tuple[str, str]]:
    parameters = []
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        match = _PARAMETER.fullmatch(declaration)
        if not match or match[3]:
            raise UnsupportedPtx(f"parameter {declaration!r}")
        parameters.append((match[1], match[2]))
    return parameters


def _threads(directives: str) -> int | None:
    if rest := _ENTRY_DIRECTIVES.sub("", directives).strip():
        raise UnsupportedPtx(f"kernel directives {rest!r}")
    match = re.search(r"\.reqntid\s+([\d, ]+)", directives)
    if not match:
        return None
    x, *others = (int(n) for n in match[1].split(","))
    for other in others:
        x *= other
    return x


def _statements(body: str, line: int) -> Iterator[Statement]:
    for chunk in body.split(";"):
        rest = chunk.lstrip()
        while rest:
            here = line + chunk[: len(chunk) - len(rest)].count("\n")
            if rest[0] in "{}":
                yield Statement(rest[0], here)
                rest = rest[1:].lstrip()
            elif label := _LABEL.match(rest):
                yield Statement(label[1] + ":", here)
                rest = rest[label.end() :]
            else:
                yield Statement(" ".join(rest.split()), here)
                break
        line += chunk.count("\n")
