"""A slice of docs/metrics.md: metrics of models of known quality."""

import importlib

import numpy as np
import pytest

evidence = importlib.import_module("v1fast.benchmarks.metrics_evidence")
UNEQUAL = evidence.SETTINGS["2 to 18 repeats"]
SEEDS = 16


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("single_trial_correlation", "noisy"),
        ("explainable_variance", "true rates"),
        ("feve", "true rates"),
        ("ccnorm", "true rates"),
        ("information_gain", "scaled"),
    ],
)
def test_intervals_hold_the_known_value(name, model):
    truth = evidence.known(UNEQUAL, model)[name]
    found = [evidence.estimate(name, UNEQUAL, model, seed, resamples=200) for seed in range(SEEDS)]
    held = sum(truth in interval for _, interval in found)
    assert held >= SEEDS - 4
    values = [value for value, _ in found]
    assert abs(np.mean(values) - truth) < 0.03
    # Neither so wide that they hold anything.
    assert np.mean([interval.high - interval.low for _, interval in found]) < 8 * np.std(values)


def test_the_true_rates_are_worth_one():
    known = evidence.known(UNEQUAL, "true rates")
    assert known["feve"] == known["ccnorm"] == pytest.approx(1)
    assert evidence.known(UNEQUAL, "shifted")["feve"] < known["feve"]
    assert known["oracle_correlation"] < evidence.ideal_oracle(UNEQUAL) < known["oracle_correlation_conservative"]


def test_the_page_is_filled_between_its_markers(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{evidence.START}\nold\n{evidence.END}\nafter\n")
    monkeypatch.setattr(evidence, "SETTINGS", {"A title": UNEQUAL})
    monkeypatch.setattr(evidence, "cases", lambda made: iter([("ccnorm", "noisy"), ("feve", "noisy")]))
    evidence.main(page, 2)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `ccnorm` | noisy | " in text
