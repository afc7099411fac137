"""Keyword arguments that a readout ignores: warn of those that look misspelt, not of those that others use."""

from __future__ import annotations

import difflib
import functools
import inspect
from typing import Any

from typing_extensions import Self  # torch brings it

from v1fast._config import Configured
from v1fast._warnings import run_while_tracing, warn_caller

# Ratios of difflib: two letters exchanged in a word of five ("shfit"), and of four ("bais").
_SIMILARITY, _SIMILARITY_OF_LETTERS = 0.8, 0.7
# Common names in batches, data sets and configurations that look like arguments but are not misspelt.
_FIELDS = """
a_init b_init batch behavior biases bout_idx channels condition_hash cut_idx data_key data_keys features frame
frame_image_id frames gaze grids image image_id image_offsets image_onset image_onsets images in_shapes_dict index
indices init_std loader masks mean_activity mean_activity_dict mean_responses mouse neuron_ids neurons pupil
pupil_center repeats response responses running running_speed sample sample_id sample_ids sample_idx sample_rate
sample_weight sample_weights samples samples_per_second sampling sampling_rate scales seeds session session_id shape
shapes shifter shifts sigma_range simple speed speeds step steps stimuli stimulus stride strides sub_id subj_idx
subject_idx subs tier tiers time times timestamps trial trial_idx trials unit_idx video videos w_init weights
"""
_warned: set[tuple[type, str]] = set()


@functools.cache
def arguments(cls: type, method: str) -> frozenset[str]:
    """Names of the arguments of a method, and of the methods of base classes that may get its ``**kwargs``.

    A multi-session readout's constructor also passes them to ``prepare_readout_kwargs``.
    """
    names: set[str] = set()
    for base in cls.__mro__:
        function = vars(base).get(method)
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    if method == "__init__":
        names |= arguments(cls, "prepare_readout_kwargs")
    return frozenset(names - {"self"})


@functools.cache
def _of_all_readouts(method: str) -> frozenset[str]:
    from v1fast import readouts

    classes = (getattr(readouts, name) for name in readouts.__all__)
    return frozenset().union(*(arguments(cls, method) for cls in classes))


def _meant(name: str, classes: tuple[type, ...], method: str) -> str | None:
    """The argument that ``name`` is a misspelling of."""
    parameters = inspect.signature(getattr(classes[0], method)).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        return None  # Python itself refuses an unknown argument
    if name in _FIELDS.split() or name in _of_all_readouts(method):
        return None
    real = sorted(frozenset().union(*(arguments(cls, method) for cls in classes)))
    if name in real:
        return None
    close = difflib.get_close_matches(name, real, n=1, cutoff=_SIMILARITY)
    if not close:
        of_its_letters = [argument for argument in real if sorted(argument) == sorted(name)]
        close = difflib.get_close_matches(name, of_its_letters, n=1, cutoff=_SIMILARITY_OF_LETTERS)
    return close[0] if close else None


@functools.lru_cache(4096)  # keyed by all names at once: a look-up per field would slow a small model's step
def _misspelt(names: tuple[str, ...], classes: tuple[type, ...], method: str) -> tuple[tuple[str, str], ...]:
    found = ((name, _meant(name, classes, method)) for name in names)
    return tuple((name, meant) for name, meant in found if meant is not None)


@run_while_tracing
def warn_of_misspelt(classes: tuple[type, ...], method: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Warn once per class and name of each name that resembles an argument of the method of ``classes``.

    Arguments of other readouts count as known, because one configuration often serves several readouts. So do fields
    of a batch.

    Returns:
        The names that are misspelt.
    """
    misspelt = _misspelt(names, classes, method)
    for name, meant in misspelt:
        if (classes[0], name) not in _warned:
            warn_caller(f"{classes[0].__name__} ignores the argument {name!r}: did you mean {meant!r}?")
            _warned.add((classes[0], name))  # after the warning, which may be raised as an error
    return tuple(name for name, _ in misspelt)


class ChecksArguments(Configured):
    """A module that warns of misspelt keyword arguments of its constructor and of forward."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the names first. ``__new__`` gets the caller's arguments whatever a subclass's constructor does."""
        if kwargs:
            warn_of_misspelt((cls,), "__init__", tuple(kwargs))
        return super().__new__(cls, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As usual."""
        if kwargs:
            warn_of_misspelt((type(self),), "forward", tuple(kwargs))
        return super().__call__(*args, **kwargs)
