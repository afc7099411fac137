"""Which forms of the GPU kernels the Triton at hand compiles: ``python -m v1fast.benchmarks.gpu_forms sm_80 sm_90``.

No GPU is needed. An op whose form does not compile runs on its reference, after one warning.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from v1fast._torch import too_old_for_triton
from v1fast.ops._gpu_check import reason_of


def compile_forms(architecture: str) -> dict[str, str]:
    """Compile every form for an architecture. Return why it does not compile, "" where it does."""
    import triton
    from triton.compiler import ASTSource

    table = importlib.import_module("v1fast.benchmarks.gpu_table")
    where = table.ARCHITECTURES[architecture]
    found = {}
    for name, form in table.forms(where).items():
        source = ASTSource(form.kernel, form.signature, form.constants, form.attributes)
        try:
            triton.compile(source, target=where.target, options=form.options)
        except Exception as error:
            found[name] = reason_of(error)
        else:
            found[name] = ""
    return found


def main(architectures: Sequence[str]) -> None:
    """Print for each architecture how many forms compile, and those that do not."""
    if importlib.util.find_spec("triton") is None:
        print("GPU forms: there is no Triton here")
        return
    old = too_old_for_triton()
    if old:
        print(f"GPU forms: {old}")
        return
    for architecture in architectures:
        reasons = compile_forms(architecture)
        failed = {name: reason for name, reason in reasons.items() if reason}
        print(f"GPU forms: {len(reasons) - len(failed)} of {len(reasons)} compile for {architecture}")
        for name, reason in failed.items():
            print(f"  {name}: {reason}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["sm_80", "sm_90"])
