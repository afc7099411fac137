#!/usr/bin/env bash
# Is a wheel all that is needed? For each Python that has torch: a fresh environment that sees its packages; the wheel
# installed into it in less than 15 s of work, with no compiler to be found; every part loaded; kernels beside torch's own.
#
#   tools/check_wheel.sh WHEEL PYTHON...
set -euo pipefail
[ -f "$1" ] || { echo "no wheel: $1" >&2; exit 1; }
wheel="$(realpath "$1")"
shift
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
for python in "$@"; do
    environment="$scratch/environment"
    rm -rf "$environment"
    "$python" -m venv "$environment"
    "$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))" >"$(echo "$environment"/lib/python*/site-packages)/torch.pth"
    cd "$scratch"
    TIMEFORMAT="%R %U"
    { time PATH=/nowhere "$environment/bin/python" -m pip --disable-pip-version-check --quiet install "$wheel"; } 2>seconds
    read -r elapsed busy < <(tail -n 1 seconds)
    echo "== $("$python" --version): installed in $elapsed s, $busy s of them at work"
    [ "${busy%.*}" -lt 15 ] || { cat seconds; exit 1; }
    PATH=/nowhere "$environment/bin/python" - <<'PYTHON'
import torch

import v1fast
from v1fast import doctor
from v1fast.functional import gaussian_readout, rdm

report = doctor.examine(quick=True)
print(doctor.as_text(report))
assert report.kernels["native"] == "loaded", report.kernels
assert report.probe == "loaded", report.probe
responses = torch.randn(20, 300, dtype=torch.float64)
assert torch.allclose(rdm(responses), 1 - torch.corrcoef(responses), atol=1e-12)
features = torch.randn(3, 8, 9, 11, requires_grad=True)
operands = torch.rand(40, 2) * 2 - 1, torch.randn(40, 2, 2) / 9, torch.randn(40, 8), torch.randn(40)
gaussian_readout(features, *operands, seed=1).sum().backward()
assert features.grad.isfinite().all() and features.grad.any()
print("all green\n")
PYTHON
done
