"""A frozen core's features, computed once and kept: readouts are then trained on them, without the core.

Nothing but the time changes: the readouts get the same features in the same order as if the core ran in every step.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from v1fast import _files
from v1fast.models import FiringRateEncoder
from v1fast.training.batches import INPUTS, RESPONSES, Loader, as_fields
from v1fast.training.fitting import Data, History, fit

MEMORY = 2 * 2**30
"""Bytes of features that are kept in memory; more than that lie in a mapped file."""

_STORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class TrialRows:
    """The images of trials, from a tensor of distinct images: trial t showed image ``index[t]``.

    It stands in for a tensor of trials in the mappings that :class:`v1fast.training.TensorBatches` takes.

    Args:
        values: [I, ...], e.g. images [I, C, H, W].
        index: [T], int64, the row that each trial showed; None: trial t showed row t.

    Raises:
        ValueError: an index is out of range.

    >>> import torch
    >>> rows = TrialRows(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0, 1]))
    >>> len(rows), rows[torch.tensor([0, 1])].flatten().tolist()
    (3, [2.0, 1.0])
    """

    def __init__(self, values: Tensor, index: Tensor | None = None) -> None:
        self.values = values
        self.index = torch.arange(len(values), device=values.device) if index is None else index.to(values.device)
        low, high = (int(self.index.min()), int(self.index.max())) if len(self.index) else (0, -1)
        if low < 0 or high >= len(values):
            raise ValueError(f"index: want rows from 0 to {len(values) - 1}, got {low} to {high}")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> torch.Size:
        """(T, ...)."""
        return torch.Size((len(self), *self.values.shape[1:]))

    @property
    def device(self) -> torch.device:
        """Of the values."""
        return self.values.device

    def __getitem__(self, trials: Any) -> Tensor:
        return self.values[self.index[trials]]

    def select(self, trials: Any) -> TrialRows:
        """The rows of some trials: indices or a mask. The values are shared."""
        chosen = object.__new__(type(self))
        chosen.__dict__ = {**self.__dict__, "index": self.index[trials]}
        return chosen


class CachedFeatures(TrialRows):
    """A core's feature maps, [T, C, H, W] for T trials, kept once for each distinct image.

    :func:`cache_features` makes it. Rows come as float32 in channels-last, which the readouts read without a copy.

    Attributes:
        values: [I, H, W, C] in the stored dtype, in memory or mapped from a file.
        index: [T].
        mapped: whether they lie in a file.
    """

    def __init__(self, values: Tensor, index: Tensor | None, mapped: bool) -> None:
        super().__init__(values, index)
        self.mapped = mapped

    @property
    def shape(self) -> torch.Size:
        """(T, C, H, W)."""
        _, height, width, channels = self.values.shape
        return torch.Size((len(self), channels, height, width))

    @property
    def nbytes(self) -> int:
        """Bytes of the stored maps."""
        return self.values.numel() * self.values.element_size()

    def __getitem__(self, trials: Any) -> Tensor:
        rows = self.values.index_select(0, self.index[trials])
        rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
        return rows.permute(0, 3, 1, 2)

    def __repr__(self) -> str:
        where = "in a file" if self.mapped else "in memory"
        sizes = " x ".join(map(str, self.shape[1:]))
        return (
            f"CachedFeatures({len(self)} trials of {len(self.values)} images, {sizes}, "
            f"{self.nbytes / 2**20:.1f} MiB of {str(self.values.dtype)[6:]} {where})"
        )


@torch.no_grad()
def cache_features(
    encoder: nn.Module,
    data: Loader | Mapping[str, Any],
    *,
    batch_size: int = 64,
    memory: int = MEMORY,
    folder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Compute the features that a frozen core gives for each distinct image, once.

    The core runs in evaluation mode, whatever mode it is in, and is left as it was.

    Args:
        encoder: its ``core`` gives maps [B, C, H, W] of images [B, c, H, W].
        data: a mapping of rows by name, as :func:`v1fast.training.fit` takes it, or a loader, of which one pass is
            read. Images given as :class:`TrialRows` are run once each, however many trials showed them. Where the
            core takes behaviour or pupil as channels of its images, each trial's image is another one.
        batch_size: images that the core is given at once.
        memory: the most bytes of features to keep in memory. More of them lie in a file, which is mapped, so that the
            system keeps in memory what it has room for.
        folder: where that file lies; None: the system's folder for temporary files. Nobody else sees it, and it is
            gone when the features are.
        dtype: to store them in: float32, or bfloat16 for half the bytes. docs/transfer.md says what that does to a fit.

    Returns:
        The fields, with :class:`CachedFeatures` as "images".

    Raises:
        ValueError: there are no images, or their maps are not [B, C, H, W]; an unknown ``dtype``.
        OSError: the file cannot be written, for example because the disk is full.
    """
    if dtype not in _STORED:
        raise ValueError(f"dtype: want one of {', '.join(map(str, _STORED))}, got {dtype}")
    fields = dict(data) if isinstance(data, Mapping) else _all_batches(data)
    name = next((name for name in INPUTS if name in fields), None)
    if name is None or not len(fields[name]):
        raise ValueError(f"data: want images under one of {', '.join(INPUTS)}, got {', '.join(fields) or 'no fields'}")
    given = fields.pop(name)
    rows = given if isinstance(given, TrialRows) else TrialRows(given)
    core: Any = encoder.core
    modes = [(module, module.training) for module in core.modules()]
    core.eval()
    try:
        maps = _maps(encoder, rows, batch_size)
        values, mapped = _store(maps, len(rows.values), dtype, memory, folder)
    finally:
        for module, mode in modes:
            module.training = mode
    return {INPUTS[0]: CachedFeatures(values, rows.index, mapped), **fields}


def _all_batches(loader: Loader) -> dict[str, Any]:
    """The fields of one pass, trial after trial."""
    batches = []
    for batch in loader:
        inputs, responses, others = as_fields(batch)
        batches.append({INPUTS[0]: inputs, RESPONSES[0]: responses, **others})
    if not batches:
        raise ValueError("data: want a loader that gives batches, got none")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _maps(encoder: Any, rows: TrialRows, batch_size: int) -> Iterator[Tensor]:
    """Maps of the distinct images, [B, H, W, C] in dense memory."""
    device = next((p.device for p in encoder.core.parameters()), rows.device)
    for images in rows.values.split(batch_size):
        maps: Tensor = encoder.features(images.to(device))
        if maps.dim() != 4:
            raise ValueError(f"features: want maps [B, C, H, W] of images, got {tuple(maps.shape)}")
        yield maps.permute(0, 2, 3, 1).contiguous()


def _store(
    maps: Iterator[Tensor], images: int, dtype: torch.dtype, memory: int, folder: str | Path | None
) -> tuple[Tensor, bool]:
    """All maps in one tensor [I, H, W, C]; whether it is mapped from a file."""
    first = next(maps)
    needed = images * first[0].numel() * dtype.itemsize
    if needed > memory:
        return _store_in_file(first, maps, images, dtype, folder), True
    values = torch.empty(images, *first.shape[1:], dtype=dtype, device=first.device)
    values[: len(first)] = first
    filled = len(first)
    for part in maps:
        values[filled : filled + len(part)] = part
        filled += len(part)
    return values, False


def _store_in_file(
    first: Tensor, maps: Iterator[Tensor], images: int, dtype: torch.dtype, folder: str | Path | None
) -> Tensor:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    # Written rather than filled through the map: on a full disk that is an error, not a signal that ends the process.
    with tempfile.NamedTemporaryFile(prefix="v1fast-features-", dir=folder) as file:
        with _files.naming(Path(file.name)):
            for part in itertools.chain([first], maps):
                file.write(part.to(dtype).cpu().contiguous().view(torch.uint8).numpy().data)
            file.flush()
        shape = (images, *first.shape[1:])
        return torch.from_file(file.name, shared=False, size=torch.Size(shape).numel(), dtype=dtype).view(shape)


class _NoCore(nn.Module):
    """In place of a core: the maps pass as they are; the penalty is the number that the frozen core's is."""

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, maps: Tensor) -> Tensor:
        return maps

    def regularizer(self) -> float:
        return self.penalty


def without_core(encoder: FiringRateEncoder) -> FiringRateEncoder:
    """Return an encoder that takes a frozen core's maps in place of images, and shares all else with ``encoder``.

    Readouts, shifter and modulator are the same modules: what is trained here is trained there.

    Args:
        encoder: with a frozen core, see :meth:`FiringRateEncoder.freeze_core`.

    Raises:
        ValueError: its core is not frozen: features that were kept would not be those of the core any more.
    """
    if not encoder.core_is_frozen:
        raise ValueError("encoder: want a frozen core, encoder.freeze_core(), got one that is trained")
    penalty = getattr(encoder.core, "regularizer", lambda: 0.0)()
    penalty = sum(penalty) if isinstance(penalty, tuple) else penalty
    rest = FiringRateEncoder(
        _NoCore(float(penalty)),
        encoder.readout,
        shifter=encoder.shifter,
        modulator=encoder.modulator,
        elu_offset=encoder.offset,
        nonlinearity_type=encoder.nonlinearity_type,
        nonlinearity_config=encoder.nonlinearity_config,
    )
    rest.nonlinearity_fn = encoder.nonlinearity_fn
    return rest.freeze_core()


def fit_readouts(
    encoder: FiringRateEncoder,
    train: Data,
    validation: Data | None = None,
    *,
    memory: int = MEMORY,
    folder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> History:
    """Freeze the core and fit all else: readouts, shifter, modulator. The core runs once for each image.

    The result is that of ``fit(encoder.freeze_core(), train, validation, **options)``, up to the rounding of the
    features.

    Args:
        encoder: its core is frozen from here on.
        train, validation: see :func:`fit`; "images" may also be :class:`TrialRows`, or :class:`CachedFeatures` that
            :func:`cache_features` has made with the same core.
        memory, folder, dtype: see :func:`cache_features`, each for a session's training and for its validation data.
        **options: see :func:`fit`.

    Raises:
        ValueError, NonFiniteLossError, KeyboardInterrupt: see :func:`fit`.

    >>> import torch
    >>> from v1fast.models import Stacked2dCore
    >>> from v1fast.readouts import FullGaussian2d
    >>> core = Stacked2dCore(1, 8, 5, 3, layers=2, stack=-1)
    >>> encoder = FiringRateEncoder(core, FullGaussian2d((8, 16, 16), 20, bias=True))
    >>> trials = {"images": torch.randn(64, 1, 16, 16), "responses": torch.rand(64, 20)}
    >>> len(fit_readouts(encoder, {"mouse": trials}, {"mouse": trials}, max_epochs=2, show=False).epochs)
    2
    """
    encoder.freeze_core()

    def cached(data: Data | None) -> dict[str, Any] | None:
        if data is None:
            return None
        return {
            name: fields
            if isinstance(fields, Mapping) and isinstance(fields.get(INPUTS[0]), CachedFeatures)
            else cache_features(encoder, fields, memory=memory, folder=folder, dtype=dtype)
            for name, fields in data.items()
        }

    history = fit(without_core(encoder), cast("Data", cached(train)), cached(validation), **options)
    encoder.eval()
    return history
