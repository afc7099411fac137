"""The metrics of :mod:`v1fast.metrics.functional` as ``torchmetrics.Metric``.

``update`` takes the arguments of the function, batch by batch and in the same order: responses, predictions, image_ids.
``compute`` gives the mean over neurons as a float64 scalar or, with ``per_neuron=True``, the values [N]. ``result`` is
then the function's whole result, including the counts of undefined values.

The result does not depend on how trials are split into batches and processes. Samplers for several processes repeat
some trials, so that each process gets the same number. With ``trial_id`` in ``update``, a trial counts once. Metrics
without repeats keep float64 sums. With ``trial_id`` they keep every trial, as metrics with repeats do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from v1fast.metrics import _measures, functional
from v1fast.metrics._results import Bootstrap, Result
from v1fast.metrics._sums import Images, Measure, Trials, images_of


class _NeuronMetric(Metric):
    """Base class: stores the trials in the order of arrival and implements ``compute``.

    Attributes:
        result: of the last ``compute``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    _rows: ClassVar[tuple[str, ...]]
    trial_id: list[Tensor]
    result: Any

    def __init__(self, per_neuron: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.per_neuron, self.result = per_neuron, None
        for name in (*self._rows, "trial_id"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _keep(self, operands: dict[str, Tensor], trial_id: Tensor | None) -> None:
        """Add trials and, if given, their ids. Ids must be given always or never."""
        first = operands[self._rows[0]]
        if first.dim() != 2:
            raise ValueError(f"{self._rows[0]}: want [B, N], got {tuple(first.shape)}")
        kept = getattr(self, self._rows[0])
        if len(kept) > 0 and (trial_id is None) != (len(self.trial_id) == 0):
            raise ValueError("trial_id: want it in every update or in none")
        if trial_id is not None:
            operands = {**operands, "trial_id": trial_id}
        for name, values in operands.items():
            if len(values) != len(first):
                raise ValueError(f"{name}: want {len(first)} trials, got {len(values)}")
            getattr(self, name).append(values.detach())

    def _trials(self) -> dict[str, Tensor]:
        """Return all trials, each once: duplicates are found by trial_id if it is given."""
        rows = {name: dim_zero_cat(getattr(self, name)) for name in self._rows}
        if len(self.trial_id) == 0:
            return rows
        ids = dim_zero_cat(self.trial_id).cpu().numpy()
        _, first = np.unique(ids, return_index=True)
        chosen = torch.from_numpy(first).to(rows[self._rows[0]].device)
        return {name: values[chosen] for name, values in rows.items()}

    def _evaluate(self) -> Result:
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Return the mean over the neurons that have a value, or the values [N]."""
        self.result = self._evaluate()
        values: Tensor = self.result.per_neuron
        return values if self.per_neuron else values.nanmean()

    def reset(self) -> None:
        """Forget all trials."""
        super().reset()
        self.result = None


class _SumMetric(_NeuronMetric):
    """A metric of single trials. Its state is a list of float64 sums about a reference, [1, 2 + S, N] per part of the
    data.

    The reference comes from the first trials. Sums about another reference are converted before they are added.
    """

    _rows = ("responses", "predictions")
    _measure: ClassVar[Measure]
    _names: ClassVar[tuple[str, ...]]
    sums: list[Tensor]

    def __init__(self, per_neuron: bool = False, **kwargs: Any) -> None:
        super().__init__(per_neuron, **kwargs)
        self.add_state("sums", default=[], dist_reduce_fx="cat")

    def update(self, responses: Tensor, predictions: Tensor, trial_id: Tensor | None = None) -> None:
        """Add trials: responses, predictions [B, N], trial_id [B] integers."""
        if responses.dim() != 2 or predictions.shape != responses.shape:
            got = f"{tuple(responses.shape)} and {tuple(predictions.shape)}"
            raise ValueError(f"responses, predictions: want [B, N] both, got {got}")
        if (len(self.sums) > 0 and trial_id is not None) or (len(self.trial_id) > 0 and trial_id is None):
            raise ValueError("trial_id: want it in every update or in none")
        if trial_id is not None:
            self._keep({"responses": responses, "predictions": predictions}, trial_id)
        elif len(responses) > 0:
            reference = self.sums[0][0, :2] if len(self.sums) > 0 else None
            self.sums = [self._merged([*self.sums, self._totals(responses, predictions, reference)])]

    def _moved(self, totals: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Convert the sums [S, N] to another reference [2, N]."""
        raise NotImplementedError

    def _totals(self, responses: Tensor, predictions: Tensor, reference: Tensor | None) -> Tensor:
        """Return reference, number of trials and sums, [1, 2 + S, N]."""
        trials = Trials.of(responses, predictions, None, repeats=False)
        images = images_of(trials, self._measure, reference)
        sums = [images.sums[name][0] for name in self._names]
        return torch.cat([images.reference, torch.stack([images.n[0].expand_as(sums[0]), *sums])])[None]

    def _merged(self, parts: Sequence[Tensor]) -> Tensor:
        """Merge parts [K, 2 + S, N] into [1, 2 + S, N]."""
        every = torch.cat(list(parts))
        reference = every[0, :2]
        totals = torch.stack([self._moved(part[2:], part[:2], reference) for part in every]).sum(0)
        return torch.cat([reference, totals])[None]

    def _evaluate(self) -> Result:
        if len(self.trial_id) > 0:
            rows = self._trials()
            sums = self._totals(rows["responses"], rows["predictions"], None)[0]
        else:
            sums = self._merged([dim_zero_cat(self.sums)])[0]
        named = {name: row[None] for name, row in zip(self._names, sums[3:], strict=True)}
        nothing = sums.new_empty(0)
        images = Images(sums[2:3], named, sums[:2], nothing, nothing)
        return Result(self._measure.value([feature[0] for feature in self._measure.features(images)]))


class SingleTrialCorrelation(_SumMetric):
    """See :func:`v1fast.metrics.single_trial_correlation`."""

    _measure, _names = _measures.SINGLE_TRIAL, _measures.PAIRS

    def _moved(self, totals: Tensor, old: Tensor, new: Tensor) -> Tensor:
        n, x, y, xx, yy, xy = totals
        dx, dy = old - new
        moved = (xx + 2 * dx * x + n * dx * dx, yy + 2 * dy * y + n * dy * dy, xy + dy * x + dx * y + n * dx * dy)
        return torch.stack([n, x + n * dx, y + n * dy, *moved])


class _DevianceMetric(_SumMetric):
    _names = ("r", "model", "null")

    def _moved(self, totals: Tensor, old: Tensor, new: Tensor) -> Tensor:
        n, y, divergence, from_reference = totals
        change = n * (new[0] - old[0]) - y * (new[0] / old[0]).log()
        return torch.stack([n, y, divergence, from_reference + change])


class PoissonDevianceExplained(_DevianceMetric):
    """See :func:`v1fast.metrics.poisson_deviance_explained`."""

    _measure = _measures.DEVIANCE_EXPLAINED


class InformationGain(_DevianceMetric):
    """See :func:`v1fast.metrics.information_gain`."""

    _measure = _measures.INFORMATION_GAIN


class _RepeatsMetric(_NeuronMetric):
    """A metric of images and predictions: every trial is kept."""

    _rows: ClassVar[tuple[str, ...]] = ("responses", "predictions", "image_ids")

    def __init__(self, per_neuron: bool = False, bootstrap: Bootstrap | None = None, **kwargs: Any) -> None:
        super().__init__(per_neuron, **kwargs)
        self.bootstrap = bootstrap

    def update(self, responses: Tensor, predictions: Tensor, image_ids: Tensor, trial_id: Tensor | None = None) -> None:
        """Add trials: responses, predictions [B, N], image_ids and trial_id [B], integers."""
        self._keep({"responses": responses, "predictions": predictions, "image_ids": image_ids}, trial_id)


class CorrelationToAverage(_RepeatsMetric):
    """See :func:`v1fast.metrics.correlation_to_average`."""

    def _evaluate(self) -> Result:
        return functional.correlation_to_average(**self._trials(), bootstrap=self.bootstrap)


class CCNorm(_RepeatsMetric):
    """See :func:`v1fast.metrics.ccnorm`."""

    def _evaluate(self) -> Result:
        return functional.ccnorm(**self._trials(), bootstrap=self.bootstrap)


class FEVE(_RepeatsMetric):
    """See :func:`v1fast.metrics.feve`."""

    def __init__(
        self,
        threshold: float | None = functional.FEV_THRESHOLD,
        weighting: functional.Weighting = "image",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.threshold, self.weighting = threshold, weighting

    def _evaluate(self) -> Result:
        rows: dict[str, Any] = self._trials()
        return functional.feve(**rows, threshold=self.threshold, weighting=self.weighting, bootstrap=self.bootstrap)


class FractionOracle(_RepeatsMetric):
    """See :func:`v1fast.metrics.fraction_oracle`. It gives one number, even with ``per_neuron``."""

    def __init__(self, nan: Literal["omit", "zero"] = "omit", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nan = nan

    def compute(self) -> Tensor:
        """Return the slope."""
        rows = self._trials()
        self.result = functional.fraction_oracle(**rows, nan=self.nan, bootstrap=self.bootstrap)
        return torch.tensor(self.result.value, dtype=torch.float64, device=rows["responses"].device)


class _ResponsesMetric(_RepeatsMetric):
    """A metric of images and responses only."""

    _rows: ClassVar[tuple[str, ...]] = ("responses", "image_ids")

    def update(self, responses: Tensor, image_ids: Tensor, trial_id: Tensor | None = None) -> None:  # type: ignore[override]
        """Add trials: responses [B, N], image_ids and trial_id [B], integers."""
        self._keep({"responses": responses, "image_ids": image_ids}, trial_id)


class OracleCorrelation(_ResponsesMetric):
    """See :func:`v1fast.metrics.oracle_correlation`."""

    def __init__(self, method: Literal["jackknife", "conservative"] = "jackknife", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.method = method

    def _evaluate(self) -> Result:
        return functional.oracle_correlation(**self._trials(), method=self.method, bootstrap=self.bootstrap)


class ExplainableVariance(_ResponsesMetric):
    """See :func:`v1fast.metrics.explainable_variance`."""

    def __init__(self, weighting: functional.Weighting = "image", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weighting = weighting

    def _evaluate(self) -> Result:
        return functional.explainable_variance(**self._trials(), weighting=self.weighting, bootstrap=self.bootstrap)
