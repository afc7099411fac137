"""Changed programs: every instruction that names an address can be moved."""

from ptx_emulator.mutants import mutants


def test_addresses_are_moved_by_one_element() -> None:
    """By the size of the type; a copy names none, and goes 16 bytes on."""
    program = "\n".join(
        (
            "\tld.global.b32 \t%r1, [ %rd1 + 4 ];",
            "\tst.shared.b64 \t[%r2], %rd3;",
            "\tcp.async.cg.shared.global [ %r3 + 0 ], [ %rd4 + 32 ], 16;",
        )
    )
    moved = [mutant.after for mutant in mutants(program) if mutant.kind == "another address"]
    addresses = [line.split("[", 1)[1].strip() for line in moved]
    assert addresses == ["%rd1+8];", "%r2+8], %rd3;", "%r3 + 0 ], [%rd4+48], 16;"]
