"""The text by which an opcode is looked up.

Most instructions are looked up as written. Memory instructions carry modifiers that do not affect the result where
threads run one at a time: cache hints, memory order and scope. Their order differs between compilers. These modifiers
are removed here, each from its own list. Everything else in an instruction stays, and must be in the machine's table.
"""

from .errors import UnsupportedPtx

_SPACES = {
    "global": "global", "shared": "shared", "shared::cta": "shared", "local": "local", "param": "param",
    "const": "global",
}  # fmt: skip
_CACHE = {"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"}
_PREFETCH = {"L2::64B", "L2::128B", "L2::256B"}
_POLICY = {"L2::cache_hint"}  # comes with an operand, which is the last one
_L2 = {"L2::evict_first", "L2::evict_last", "L2::evict_normal"}
_SCOPE = {"cta", "gpu", "sys", "cluster"}
_HINTS = {
    "ld": [{"weak", "relaxed", "acquire", "volatile", "mmio"}, _SCOPE, {"ca", "cg", "cs", "lu", "cv"}, {"nc"},
           _CACHE, _PREFETCH, _L2, _POLICY],
    "st": [{"weak", "relaxed", "release", "volatile", "mmio"}, _SCOPE, {"wb", "cg", "cs", "wt"}, _CACHE, _L2, _POLICY],
    "atom": [{"relaxed", "acquire", "release", "acq_rel"}, _SCOPE, {"noftz"}, _POLICY],
    "red": [{"relaxed", "release"}, _SCOPE, {"noftz"}, _POLICY],
    "cp": [{"ca", "cg"}, _PREFETCH, _POLICY],
}  # fmt: skip
_FLOATS_ADDED_AS_HALVES = {"f16", "bf16", "f16x2", "bf16x2"}


def canonical(opcode: str) -> tuple[str, bool]:
    """Return the opcode as in the machine's table, and whether its last operand is a cache policy to be dropped."""
    name, *modifiers = opcode.split(".")
    if name in ("ld", "st", "atom", "red"):
        return _memory(opcode, name, modifiers)
    if name == "cp" and modifiers[:1] == ["async"] and modifiers[1:2] in (["ca"], ["cg"]):
        rest, policy = _without_hints(opcode, name, modifiers[1:])
        if rest not in (["shared", "global"], ["shared::cta", "global"]):
            raise UnsupportedPtx(opcode)
        return "cp.async", policy
    if name in ("ldmatrix", "stmatrix"):
        return opcode.replace(".shared::cta.", ".shared."), False
    return opcode, False


def _memory(opcode: str, name: str, modifiers: list[str]) -> tuple[str, bool]:
    rest, policy = _without_hints(opcode, name, modifiers)
    spaces = [m for m in rest if m in _SPACES]
    if len(spaces) > 1:
        raise UnsupportedPtx(opcode)
    rest = [m for m in rest if m not in _SPACES]
    if name in ("atom", "red"):
        rest = _operation_first(rest)
        if "noftz" in modifiers and rest[-1] not in _FLOATS_ADDED_AS_HALVES:
            raise UnsupportedPtx(opcode)
    return ".".join([name, *(_SPACES[s] for s in spaces), *rest]), policy


def _operation_first(rest: list[str]) -> list[str]:
    # LLVM writes add.v4.f32 and nvcc v4.f32.add
    vectors = [m for m in rest if m in ("v2", "v4", "v8")]
    others = [m for m in rest if m not in vectors]
    return [*others[:-1], *vectors, *others[-1:]]


def _without_hints(opcode: str, name: str, modifiers: list[str]) -> tuple[list[str], bool]:
    rest, seen = [], set()
    for modifier in modifiers:
        group = next((i for i, hints in enumerate(_HINTS[name]) if modifier in hints), None)
        if group is None:
            rest.append(modifier)
        elif group in seen:
            raise UnsupportedPtx(f"{opcode}: a second .{modifier}")
        else:
            seen.add(group)
    return rest, _POLICY.issubset(modifiers)
