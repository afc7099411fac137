"""What the opcodes have to give, in exact arithmetic, and the small kernels that show what they do give."""
