"""What ``v1fast demo`` runs: a trained model of mouse V1 checked, a simulated population fitted, the readout timed."""

from __future__ import annotations

import dataclasses
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from v1fast import _files, ops, plots
from v1fast._version import __version__
from v1fast.cli._common import benchmark
from v1fast.cli._simulated_fit import LOSS, Fit, Settings, evaluate, fit_population
from v1fast.data import Simulation, simulate
from v1fast.metrics import single_trial_correlation
from v1fast.models.reproduction import Comparison, check_trained_model, require_match

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

Shape = tuple[int, int, int, int, int]  # B, C, H, W, N
LARGE_SHAPE: Shape = (64, 64, 28, 56, 7776)  # a session of Sensorium
TIMING_ROUNDS = {"the demo's own": 9, "large": 3}  # the large one takes seconds a round
QUICK = Settings(
    neurons=60,
    image_shape=(24, 36),
    train=600,
    validation=64,
    test=64,
    repeats=4,
    channels=8,
    epochs=8,
    batch=25,
    learning_rate=0.03,
)
QUICK_SHAPE: Shape = (8, 16, 16, 28, 500)


def demonstrate(out: Path, real_data: Path | None, quick: bool = False) -> dict[str, Any]:
    """Run the demo on the CPU and write ``summary.json`` and pictures into ``out``.

    Args:
        out: folder to write to, made where it is missing; files of an earlier run are replaced.
        real_data: folder with ``sensorium_mouse_v1/``; None, or a folder that is not there, leaves that part out.
        quick: tiny sizes: seconds rather than a minute, and a poor fit.

    Returns:
        What ``summary.json`` holds.

    Raises:
        MismatchError: the trained model does not compute what its original implementation does.
        FileNotFoundError: ``real_data`` is there, but not the model or the expected values in it.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    start = time.perf_counter()
    settings = QUICK if quick else Settings()
    summary: dict[str, Any] = {"about": _about(), "settings": dataclasses.asdict(settings)}
    out.mkdir(parents=True, exist_ok=True)
    # The caller's stream of random numbers is left as it was.
    with torch.random.fork_rng(devices=[]):
        summary["trained_model"] = _trained_model(real_data, console)
        summary["simulated"], pictures, shape = _simulated(settings, console)
        # Written before the timing, so that Ctrl-C there does not lose the fit.
        _files.write_report(out, summary, pictures)
        shapes = {"the demo's own": shape, "large": QUICK_SHAPE if quick else LARGE_SHAPE}
        summary["speed"] = _speed(shapes, console)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    _files.write_report(out, summary, {"speed": _speed_picture(summary)})
    console.print(f"\nTook {summary['seconds']:.0f} s; summary.json and pictures are in {out}")
    return summary


def _about() -> dict[str, Any]:
    return {
        "v1fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "kernels": dict(ops.loaded),
    }


def _trained_model(real_data: Path | None, console: Console) -> dict[str, Any]:
    console.rule("A trained model of mouse V1, on photographs", align="left")
    if real_data is None or not real_data.is_dir():
        reason = "V1FAST_REAL_DATA is not set" if real_data is None else f"there is no folder {real_data}"
        console.print(f"Left out: {reason}.")
        return {"skipped": reason}
    with console.status("running the trained model"):
        comparisons = check_trained_model(real_data)
    console.print(_comparison_table(comparisons))
    require_match(comparisons)
    console.print("Every response and gradient matches the original implementation (neuralpredictors 0.3.0).")
    return {"comparisons": [dataclasses.asdict(comparison) for comparison in comparisons]}


def _comparison_table(comparisons: list[Comparison]) -> Any:
    from rich.table import Table

    table = Table("quantity", box=None)
    for heading in ("largest error", "largest value", "relative", "allowed"):
        table.add_column(heading, justify="right")
    for c in comparisons:
        numbers = (f"{c.largest_error:.1e}", f"{c.largest_magnitude:.3g}", f"{c.relative_error:.1e}", f"{c.bound:.0e}")
        table.add_row(c.quantity, *numbers)
    return table


def _simulated(settings: Settings, console: Console) -> tuple[dict[str, Any], dict[str, Figure], Shape]:
    console.rule("A simulated population", align="left")
    with console.status("drawing the population and its responses"):
        simulation = simulate(
            settings.neurons,
            settings.image_shape,
            train=settings.train,
            validation=settings.validation,
            test=settings.test,
            repeats=settings.repeats,
            seed=settings.seed,
        )
    console.print(
        f"{settings.neurons} Gabor energy cells, Poisson responses to {settings.train} crops of photographs; "
        f"a model of {settings.channels} channels and a Gaussian readout learns them."
    )
    fitted = fit_population(simulation, settings, console)
    summary, tensors = evaluate(fitted, simulation)
    console.print(
        f"Held-out images: correlation with the mean response {summary['correlation_median']:.3f} (median; the true "
        f"rates reach {summary['ceiling_median']:.3f})\n"
        f"Positions: {summary['position_error_median_px']:.2f} px from the true ones (median), "
        f"{summary['within_2_px']:.0%} of the neurons within 2 px"
    )
    readout: Any = fitted.model.readout
    channels, height, width = readout.in_shape
    shape = (settings.batch, channels, height, width, settings.neurons)
    return summary, _fit_pictures(fitted, simulation, tensors), shape


def _fit_pictures(fitted: Fit, simulation: Simulation, tensors: dict[str, torch.Tensor]) -> dict[str, Figure]:
    history = fitted.epochs
    truth = (simulation.validation.rates, simulation.validation.responses[0])
    learning = plots.learning_curve(
        train_loss=[epoch["train_loss"] for epoch in history],
        validation_loss=[epoch["val_loss"] for epoch in history],
        correlation=[epoch["val_correlation"] for epoch in history],
        position_error=[epoch["position_error"] for epoch in history],
        loss_floor=LOSS(*truth).item(),
        correlation_ceiling=single_trial_correlation(*truth).mean,
    )
    return {
        "positions": plots.positions(tensors["true"], tensors["learned"], simulation.population.image_shape),
        "learning": learning,
        "neurons": plots.example_neurons(tensors["predicted"], tensors["observed"], tensors["correlation"]),
    }


def _speed(shapes: dict[str, Shape], console: Console) -> dict[str, Any]:
    console.rule("A training step of the readout", align="left")
    time_readout = benchmark("one_step").time_readout
    measured = {}
    for name, shape in shapes.items():
        with console.status(f"timing: {name}"):
            measured[name] = timed = time_readout(shape, TIMING_ROUNDS[name])
        console.print(
            f"{_sizes(timed['shape'])}: eager {timed['eager_ms']:,.1f} ms, v1fast {timed['v1fast_ms']:,.1f} ms: "
            f"{timed['ratio']:.1f} times as fast (largest difference {timed['largest_difference']:.0e})"
        )
    console.print(_kernels())
    return measured


def _speed_picture(summary: dict[str, Any]) -> Figure:
    about = summary["about"]
    bars = {
        f"{_sizes(timed['shape'])}": {"eager torch": timed["eager_ms"], "v1fast": timed["v1fast_ms"]}
        for timed in summary["speed"].values()
    }
    return plots.speed_bars(
        bars, note=f"{about['machine']}, {about['threads']} threads, torch {about['torch']}. {_kernels()}"
    )


def _sizes(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in shape.items())


def _kernels() -> str:
    if ops.loaded.get("native") == "loaded":
        return "On the CPU, by v1fast's compiled kernels; the figures are this machine's."
    return f"On the CPU, by {ops.paths['CPU']}."
