"""Compiled GPU kernels with one instruction changed: does anything notice? ``python -m gpu_mutation``, from tests/."""
