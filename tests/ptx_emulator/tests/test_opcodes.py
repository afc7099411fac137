"""Every opcode that computes a value from values, against exact arithmetic."""

import ptx_emulator as emulator
import pytest
from ptx_emulator.tests.expected import conversions, floats, integers
from ptx_emulator.tests.expected.snippets import assert_as_meant

CASES = [*integers.CASES, *floats.CASES, *conversions.CASES]
# Opcodes of other kinds are tested in the files of their own.
OTHERS = ("ld.", "st.", "atom.", "red.", "cp.", "shfl.", "vote.", "redux.", "elect.", "bar", "ldmatrix.", "stmatrix.")
OTHERS += ("mma.", "bra", "ret", "exit", "trap", "membar.", "fence.", "griddepcontrol.", "nanosleep.")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.opcode}-{case.table_key[1]}")
def test_opcode(case):
    assert_as_meant(case)


def test_every_opcode_has_a_case():
    computing = {key for key in emulator.opcodes() if not key[0].startswith(OTHERS)}
    tested = [case.table_key for case in CASES]
    assert len(tested) == len(set(tested))
    assert computing == set(tested)
