"""Code in new Python processes, which import torch once between them: that takes seconds."""

import json
import subprocess
import sys

PROGRAM = """
import json, os, sys, traceback
import torch

for code in json.load(sys.stdin):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        try:
            exec(code, {"__name__": "__main__"})
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    failed = os.waitpid(child, 0)[1] != 0
    print(json.dumps([failed, said]), flush=True)
"""


def run(codes, environment=None):
    """What each of the codes prints, in a process in which nothing but torch has been imported."""
    options = {"env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=json.dumps(codes), **options)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for code, (failed, said) in zip(codes, found, strict=True):
        assert not failed, f"{code}\n{said}"
    return [said.strip() for _, said in found]
