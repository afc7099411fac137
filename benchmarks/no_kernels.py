"""What a program about the GPU kernels says where there are none."""

from __future__ import annotations

import sys

from v1fast._torch import too_old_for_triton


def end(name: str, error: ImportError) -> None:
    """End the program with one line on ``stderr``, if ``name`` is that of the program.

    Args:
        name: ``__name__`` of the module that meets the error.
        error: of the import of Triton, or of the kernels.
    """
    if name == "__main__":
        why = too_old_for_triton() or f"this needs the GPU kernels, and they need Triton: {error}"
        sys.exit(f"v1fast: {why}")
