"""Calls that nobody would write: the raw ops and the public functions with operands of any kind.

``python -m fuzz JOURNAL 0 1000 raw.rdm public.rdm`` (with tests/ on the path) makes 1000 of each in one process. Each
call is written to the journal before it is made. So a process that dies, or is ended because a call takes too long,
leaves the call behind. The tests use ``fuzz.batch``.
"""
