"""``python -m fuzz JOURNAL SEED EXAMPLES GROUP.NAME ...``."""

import sys

from .batch import make_calls

journal, seed, examples, *names = sys.argv[1:]
make_calls(journal, int(seed), int(examples), [tuple(name.split(".", 1)) for name in names])
