"""Calls that nobody would write: the raw ops and the public functions with operands of any kind.

``python -m fuzz raw rdm --examples 1000`` (with tests/ on the path) makes them in one process. Each is written to a
journal before it is run, so that a process which dies, or is ended because a call takes too long, leaves the call
behind; see ``fuzz.batch``, which the tests use.
"""
