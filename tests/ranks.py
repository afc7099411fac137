"""Functions of a module of tests on several ranks: processes that share one import of torch, joined by gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from v1fast._build import release

SHARDS_ON_CPUS = release(torch.__version__) >= (2, 7)
"""Whether ``fully_shard`` takes CPUs: torch 2.5 has none of that name, and that of 2.6 fails in its first pass."""

PROGRAM = """
import importlib, json, os, sys, traceback
import torch
import torch._dynamo  # here, because the first step of an optimiser imports it
import torch.distributed as dist

module, functions, ranks, store = json.load(sys.stdin)
torch.set_num_threads(1)
checks = importlib.import_module(module)
function, children = "", []
for rank in range(ranks):
    if not (child := os.fork()):
        os.dup2(2, 1)
        try:
            dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
            for function in functions:
                getattr(checks, function)()
                dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            print(f"rank {rank}, {function}", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    children.append(child)
failed = False
for _ in children:
    if os.wait()[1] != 0:
        failed = True
        for child in children:  # the others would wait for it
            try:
                os.kill(child, 15)
            except ProcessLookupError:
                pass
sys.exit(failed)
"""


def run(module, functions, ranks, folder, **environment):
    """Call the functions, one after the other, on each rank; AssertionError with what they said if one fails."""
    number = len(list(folder.glob("store*")))  # a file of its own for each call
    # An empty path would be the folder at hand, and its v1fast not the one that is installed.
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([module, functions, ranks, f"{folder}/store{number}"]),
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "SCRATCH": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
