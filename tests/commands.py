"""Commands of v1fast, in this process. A module that imports it is skipped where the command line is not installed."""

import pytest

CliRunner = pytest.importorskip("typer.testing").CliRunner
app = pytest.importorskip("v1fast.cli").app


def v1fast(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="v1fast")


def done(*arguments):
    result = v1fast(*arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result
