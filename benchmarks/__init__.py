"""What ``v1fast bench`` runs, imported as ``v1fast.benchmarks``: one harness, and a file ``bench_<op>`` for each op."""
