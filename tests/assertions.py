"""Measured tolerances."""

import torch


def rms(values):
    """Root mean square, 0 for none."""
    return values.double().square().mean().sqrt().item() if values.numel() else 0.0


def largest(values):
    """Largest magnitude, 0 for none."""
    return values.abs().max().item() if values.numel() else 0.0


def assert_as_accurate(got, own, exact, what=""):
    """``got`` errs at most twice as much as torch's own result, plus one unit in the last place.

    The error is the root mean square over the elements: both results round the same positions, at random, so that
    the largest of a few dozen errors is a throw of the dice. It is bounded all the same, by twice as much, so that
    no single element can be wrong.

    Args:
        got: the result under test.
        own: torch's result in the same arithmetic.
        exact: the result in float64.
        what: name for the message.
    """
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(exact.shape)}"
    assert not got.isnan().any(), f"{what}: NaN"
    exact = exact.double()
    error, own_error = got.double() - exact, own.double() - exact
    eps = torch.finfo(got.dtype).eps
    bound = 2 * rms(own_error) + eps * rms(exact)
    assert rms(error) <= bound, f"{what}: error {rms(error):.3g} of {rms(exact):.3g}, allowed {bound:.3g}"
    bound = 4 * largest(own_error) + eps * largest(exact)
    assert largest(error) <= bound, f"{what}: error {largest(error):.3g} in one element, allowed {bound:.3g}"
