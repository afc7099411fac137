"""Descriptors of rsatoolbox: columns of labels of any kind that describe the observations of a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_NAN = object()  # the key of every NaN: all NaN are one label, as in numpy.unique
_MISSING = ("NAType", "NaTType")  # of pandas, which may not be installed


class Groups(NamedTuple):
    """Observations with equal labels.

    Attributes:
        labels: [S], sorted if possible, otherwise in order of first appearance; None and NaN come last.
        codes: [R], for each observation the index of its label.
    """

    labels: list[Any]
    codes: NDArray[np.int64]


def column(given: Any, length: int) -> list[Any]:
    """Return [length] labels as Python objects where possible. Lists with both words and numbers become words.

    A single value applies to all observations.
    """
    try:
        array = np.asarray(given)
    except ValueError:  # lists of different lengths
        return list(given)
    if array.ndim == 0:
        array = np.full(length, array, dtype=array.dtype)
    # tolist would convert times to numbers.
    return list(array) if array.dtype.kind in "mM" else list(array.tolist())


def groups(argument: str, name: str, given: Any, length: int) -> Groups:
    """Group observations by the descriptor ``name``, which the caller passed as ``argument``.

    Raises:
        ValueError: there is not one label per observation, or the labels cannot be compared.
    """
    if np.ma.is_masked(given):
        raise ValueError(f"{argument}: want a label for each observation, got a masked array for {name!r}")
    labels = column(given, length)
    if len(labels) != length:
        raise ValueError(f"{argument}: want {length} values of {name!r}, one for each observation, got {len(labels)}")
    places: dict[Any, int] = {}
    try:
        codes = np.array([places.setdefault(key(label), len(places)) for label in labels], dtype=np.int64)
    except TypeError:
        got = type(next((label for label in labels if label.__hash__ is None), labels[0])).__name__
        raise ValueError(f"{argument}: want one label for each observation, got {name!r}, values of {got}") from None
    first: dict[int, Any] = {}
    for code, label in zip(codes.tolist(), labels, strict=True):
        first.setdefault(code, label)
    order = _order(list(first.values()))
    places_of_codes = np.empty(len(order), dtype=np.int64)
    places_of_codes[order] = np.arange(len(order))
    return Groups([first[code] for code in order], places_of_codes[codes])


def key(label: Any) -> Any:
    """Return a key that is equal for equal labels, NaN included."""
    if isinstance(label, (float, np.floating)):
        return _NAN if np.isnan(label) else label
    if isinstance(label, (np.datetime64, np.timedelta64)):
        return _NAN if np.isnat(label) else label
    return label


def _order(labels: list[Any]) -> list[int]:
    missing = [label is None or key(label) is _NAN or type(label).__name__ in _MISSING for label in labels]
    known = [k for k, lacks in enumerate(missing) if not lacks]
    with contextlib.suppress(TypeError):  # cannot be sorted, such as words and numbers: order of appearance
        known.sort(key=labels.__getitem__)
    return known + [k for k, lacks in enumerate(missing) if lacks]


def equal(a: Any, b: Any) -> bool:
    """Whether two values of a descriptor are the same. NaN equals NaN; values may be lists."""
    if a is b or (key(a) is _NAN and key(b) is _NAN):
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False


def of_patterns(descriptors: Mapping[str, Any], grouping: Groups, name: str) -> dict[str, list[Any]]:
    """Return ``name`` itself, and the descriptors that are constant within each label."""
    kept: dict[str, list[Any]] = {name: grouping.labels}
    for other, given in descriptors.items():
        values = column(given, len(grouping.codes))
        first: dict[int, Any] = {}
        # An index counts rows, which have changed. RDMs have their own.
        if other not in (name, "index") and all(
            equal(first.setdefault(code, value), value)
            for code, value in zip(grouping.codes.tolist(), values, strict=False)
        ):
            kept[other] = [first[code] for code in range(len(grouping.labels))]
    return kept


def union(descriptor: str, patterns: Sequence[Mapping[str, list[Any]]]) -> tuple[dict[str, list[Any]], list[list[int]]]:
    """Return the descriptors of all patterns of several datasets, and the positions of each dataset's patterns among
    them.

    Patterns are in order of first appearance. Another descriptor is kept if all datasets have it and agree on every
    pattern.
    """
    places: dict[Any, int] = {}
    found = [[places.setdefault(key(label), len(places)) for label in each[descriptor]] for each in patterns]
    merged: dict[str, list[Any]] = {}
    for name in patterns[0]:
        values: list[Any] = [None] * len(places)
        seen: set[int] = set()
        agree = all(name in each for each in patterns)
        for each, where in zip(patterns, found, strict=True):
            for place, value in zip(where, each[name] if agree else [], strict=False):
                agree = agree and (place not in seen or equal(values[place], value))
                values[place] = value if place not in seen else values[place]
                seen.add(place)
        if agree:
            merged[name] = values
    return merged, found


def alignment(
    columns: Sequence[Mapping[str, list[Any]]], observations: int
) -> tuple[dict[str, list[Any]], list[NDArray[np.int64]]]:
    """Without a grouping: find which observation of each dataset corresponds to which of the first one.

    This uses every descriptor that identifies the observations: its values are distinct, and the same in all datasets.
    If there is none, all datasets must have the same descriptors.

    Raises:
        ValueError: the descriptors do not say which observations correspond, or contradict each other.
    """
    first, rest = columns[0], columns[1:]
    same = list(range(observations))
    shared = [name for name in first if name != "index" and all(name in each for each in rest)]
    naming = [name for name in shared if _names(first[name]) and all(_permuted(first[name], e[name]) for e in rest)]
    orders: list[NDArray[np.int64]] = []
    for k, each in enumerate(rest, 1):
        by_name = {name: _permuted(first[name], each[name]) or same for name in naming}
        if any(order != by_name[naming[0]] for order in by_name.values()):
            words = " and ".join(repr(name) for name in naming)
            raise ValueError(f"descriptor: want one, since {words} order the observations of dataset[{k}] differently")
        orders.append(np.array(by_name[naming[0]] if naming else same, dtype=np.int64))
    differing = [n for n in shared if not all(_agree(first[n], e[n], o) for e, o in zip(rest, orders, strict=True))]
    if not naming and (differing or any(set(each) - {"index"} != set(first) - {"index"} for each in rest)):
        what = repr(differing[0]) if differing else "which there are"
        raise ValueError(
            f"descriptor: want one, since without it {what} differs between the datasets, and no other says which of"
            " their observations belong together"
        )
    kept = {name: first[name] for name in first if name == "index" or (name in shared and name not in differing)}
    return kept, orders


def _names(values: list[Any]) -> bool:
    try:
        return len({key(value) for value in values}) == len(values)
    except TypeError:
        return False


def _permuted(first: list[Any], other: list[Any]) -> list[int] | None:
    """Return the positions in ``other`` of the values of ``first``; None if they are not the same."""
    try:
        places = {key(value): k for k, value in enumerate(other)}
        found = [places.get(key(value), -1) for value in first]
    except TypeError:
        return None
    return found if len(places) == len(other) == len(first) and -1 not in found else None


def _agree(first: list[Any], other: list[Any], order: NDArray[np.int64]) -> bool:
    return all(equal(value, other[k]) for value, k in zip(first, order.tolist(), strict=True))
