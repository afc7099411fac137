"""New Python processes as forks of this one, which has imported torch and has the device: that takes no seconds."""

import os
import runpy
import signal
import subprocess
import sys
import time
import traceback

_Popen = subprocess.Popen


class Forked:
    """A process of ``python -m module ...``, with as much of Popen as it takes."""

    def __init__(self, command, env=None, cwd=None, stdout=None, stderr=None, stdin=None, start_new_session=False):
        self.args, self.returncode, self.stdout, self.stderr, self.stdin = command, None, None, None, None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os._exit(_run(command, env, cwd, stdout, start_new_session))

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return self.returncode

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _run(command, env, cwd, stdout, start_new_session):
    """The child's life. Return its exit code."""
    try:
        if start_new_session:
            os.setsid()
        os.dup2(stdout.fileno(), 1)
        os.dup2(1, 2)
        os.chdir(cwd or os.getcwd())
        os.environ.clear()
        os.environ.update(env)
        _, _, module, *arguments = command
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def install():
    """From now on ``python -m ...`` is a fork; what else is run is run."""

    def popen(command, *more, **options):
        is_module = command[0] == sys.executable and command[1] == "-m"
        return (Forked if is_module else _Popen)(command, *more, **options)

    subprocess.Popen = popen
