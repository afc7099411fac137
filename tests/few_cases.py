"""For slow machines: ``pytest -p few_cases`` runs the first and each 16th case of every test (V1FAST_FEW_CASES)."""

import os
from collections import Counter


def pytest_collection_modifyitems(items):
    every, seen = int(os.environ.get("V1FAST_FEW_CASES", "16")), Counter()
    kept = []
    for item in items:
        name = item.nodeid.partition("[")[0]
        if seen[name] % every == 0:
            kept.append(item)
        seen[name] += 1
    items[:] = kept
