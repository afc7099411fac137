"""How good predicted responses are, neuron by neuron.

``single_trial_correlation``   ``correlation_to_average``, ``oracle_correlation``, ``fraction_oracle``
``explainable_variance``       (``fev``), ``feve``, ``ccnorm``: with the noise taken into account
``poisson_deviance_explained`` and ``information_gain``: in likelihoods
``evaluate``                   all of them, from one pass over the trials
``Bootstrap``                  asks for an interval over images
``neuron_table``               one row for each neuron, ``write_table`` to a file
``SingleTrialCorrelation``     and so on: the same as ``torchmetrics.Metric``, which the extra ``train`` brings
"""

from typing import TYPE_CHECKING, Any

from v1fast.metrics.functional import (
    Bootstrap,
    FractionOracleResult,
    Interval,
    Result,
    ccnorm,
    correlation_to_average,
    evaluate,
    explainable_variance,
    fev,
    feve,
    fraction_oracle,
    information_gain,
    oracle_correlation,
    poisson_deviance_explained,
    single_trial_correlation,
)
from v1fast.metrics.table import neuron_table, write_table

if TYPE_CHECKING:
    from v1fast.metrics.modules import (
        FEVE,
        CCNorm,
        CorrelationToAverage,
        ExplainableVariance,
        FractionOracle,
        InformationGain,
        OracleCorrelation,
        PoissonDevianceExplained,
        SingleTrialCorrelation,
    )

_MODULES = (
    "FEVE",
    "CCNorm",
    "CorrelationToAverage",
    "ExplainableVariance",
    "FractionOracle",
    "InformationGain",
    "OracleCorrelation",
    "PoissonDevianceExplained",
    "SingleTrialCorrelation",
)


def __getattr__(name: str) -> Any:
    """Import the torchmetrics classes on first use: the functions work without torchmetrics."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torchmetrics":
            raise
        raise ModuleNotFoundError(
            f'{__name__}.{name} is a torchmetrics metric: pip install "v1fast[train]"', name="torchmetrics"
        ) from None
    from v1fast.metrics import modules

    return getattr(modules, name)


__all__ = [
    "FEVE",
    "Bootstrap",
    "CCNorm",
    "CorrelationToAverage",
    "ExplainableVariance",
    "FractionOracle",
    "FractionOracleResult",
    "InformationGain",
    "Interval",
    "OracleCorrelation",
    "PoissonDevianceExplained",
    "Result",
    "SingleTrialCorrelation",
    "ccnorm",
    "correlation_to_average",
    "evaluate",
    "explainable_variance",
    "fev",
    "feve",
    "fraction_oracle",
    "information_gain",
    "neuron_table",
    "oracle_correlation",
    "poisson_deviance_explained",
    "single_trial_correlation",
    "write_table",
]
