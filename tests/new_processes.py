"""Code in new Python processes, which are forks of one that has imported torch: that takes a second."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, os, sys, traceback
import torch

for line in sys.stdin:
    code, environment = json.loads(line)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.environ.clear()
        os.environ.update(environment)
        try:
            exec(code, {"__name__": "__main__"})
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader, errors="replace") as file:
        said = file.read()
    _, status, used = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), said, used.ru_utime + used.ru_stime]), flush=True)
"""

_parents = []  # the process that forks, from its first use until the tests end
_seconds = []  # of its children, which nobody else counts before it has ended


def _parent():
    if not _parents:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _parents.append(subprocess.Popen([sys.executable, "-c", PROGRAM], **pipes))
    return _parents[0]


def cpu_seconds():
    """CPU seconds of the codes, which this process's children do not have yet."""
    return sum(_seconds)


def stop():
    """End the process that forks."""
    while _parents:
        _parents.pop().communicate()
    _seconds.clear()


def ended(code, environment=None):
    """How ``code`` ends, and what it prints, on stderr too, in a process in which nothing but torch has been imported.

    What ``environment`` says of torch itself, as of its threads, comes too late.
    """
    parent = _parent()
    parent.stdin.write(json.dumps([code, dict(os.environ if environment is None else environment)]) + "\n")
    parent.stdin.flush()
    status, said, seconds = json.loads(parent.stdout.readline())
    _seconds.append(seconds)
    return status, said


def run(codes, environment=None):
    """What each of the codes prints: see ``ended``."""
    found = []
    for code in codes:
        status, said = ended(code, environment)
        assert status == 0, f"{code}\n{said}"
        found.append(said.strip())
    return found
