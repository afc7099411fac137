"""``python -m v1fast.benchmarks.gpu_report OUT``: writes report.json, report.md and report.png into the folder."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from v1fast._version import __version__

from .. import no_kernels

try:
    from . import page, plan, schedule
except ImportError as missing:
    no_kernels.end(__name__, missing)
    raise
from .record import Part

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "V1FAST_KERNELS": "triton",
    "V1FAST_GPU_CHECK": "0",  # else a broken kernel could pass as its fallback
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONUNBUFFERED": "1",
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m v1fast.benchmarks.gpu_report", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the report; what an earlier one left there is replaced")
    parser.add_argument("--seconds", type=float, default=585, help="for everything, or for the part")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: everything as small as can be")
    parser.add_argument(
        "--part", choices=plan.KINDS, help="run this part alone, in this process; what its file holds is not done again"
    )
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return versions, and the device as its driver names it; the parts alone use it."""
    found = {"v1fast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "not installed"
    found |= {"numpy": np.__version__, "cuda": str(torch.version.cuda or torch.version.hip)}
    return found | {"started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "cpus": str(os.cpu_count())}


def report(out: Path, seconds: float, quick: bool) -> int:
    """Run all parts. Return the exit code: 0 if each was done, 130 after Ctrl-C."""
    shutil.rmtree(out / "parts", ignore_errors=True)
    os.environ.update(ENVIRONMENT)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    stages, start, about = plan.jobs(out, quick), time.monotonic(), machine()

    def changed() -> None:
        page.write(out, about, [job for stage in stages for job in stage])

    code = 0
    try:
        schedule.run(stages, out / "logs", seconds, changed)
    except KeyboardInterrupt:
        code = 130
    page.draw(out)
    changed()
    print(f"{time.monotonic() - start:.0f} s; see {out / 'report.md'}")
    failed = any(job.status != "done" for stage in stages for job in stage)
    return code or int(failed)


def main() -> int:
    """Run the report, or one part of it."""
    asked = _arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.part is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a limit of time from outside is no less than Ctrl-C
        return report(asked.out, asked.seconds, asked.quick)
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 2
    part = Part(asked.out, asked.part, asked.seconds, asked.quick)
    part.write()
    plan.KINDS[asked.part].main(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
