"""``python -m fuzz GROUP NAME EXAMPLES SEED JOURNAL``."""

import sys

from .batch import make_calls

group, name, examples, seed, journal = sys.argv[1:]
make_calls(group, name, int(examples), int(seed), journal)
