"""Changes that compute the same, by what they change: each class has been looked at in the PTX, and says why."""

import re
from dataclasses import dataclass
from pathlib import Path

from ptx_emulator.mutants import Mutant

_KERNELS = Path(__file__).parent.parent.parent / "kernels"


@dataclass(frozen=True)
class _Class:
    """Survivors that match all of it."""

    why: str
    kinds: str = ""  # regular expressions, as all of these
    kernels: str = ""
    before: str = ""
    source: str = ""  # the line of Python


_CLASSES = (
    _Class(
        "clamp: at the bound itself, both branches give the bound",
        kinds="comparison",
        before=r"setp\.(lt|gt)\.f.*0[fd][3B]F[8F]0+;",
    ),
    _Class(
        "the lower corner is a whole number: no value lies between the two bounds",
        kinds="constant",
        before=r"setp\.ge",
        source="near =",
    ),
    _Class(
        "gather: a cell is compared with the pixel's, and neither -1 nor -2 is one",
        kinds="comparison",
        kernels="pixels_kernel",
        before=r"setp\.ge",
        source="near =",
    ),
    _Class("adds to or drops a positive zero", kinds="without its addend", before=r", 0[fd]0+;"),
    _Class(
        "a loop that always runs: there is an image, a slab, a part",
        kinds="bra dropped|constant",
        source=r"for (b0|s0|i) in|total = tl.zeros",
    ),
    _Class(
        "one turn of the loop more, in which every read is masked",
        kinds="comparison",
        kernels="slabs_kernel|sums_kernel",
        source="for s0 in",
    ),
)


def equivalent(kernel: str, mutant: Mutant, source: str) -> str | None:
    """Why a survivor is no other program than what it was made of, as far as is known."""
    file, _, line = source.partition(":")
    path = _KERNELS / file
    text = path.read_text().split("\n")[int(line) - 1].strip() if path.is_file() and int(line or 0) else ""
    for c in _CLASSES:
        fields = ((c.kinds, mutant.kind), (c.kernels, kernel), (c.before, mutant.before), (c.source, text))
        if all(re.search(pattern, value) for pattern, value in fields):
            return c.why
    return None
