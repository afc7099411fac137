"""The expected results of the opcodes, in exact arithmetic, and small kernels that show the actual results."""
