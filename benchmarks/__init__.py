"""The code of ``v1fast bench``, imported as ``v1fast.benchmarks``: one harness, and a file ``bench_<op>`` per op."""
