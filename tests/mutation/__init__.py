"""Compiled GPU kernels with one instruction changed: does anything notice? ``python -m mutation``, from tests/."""
