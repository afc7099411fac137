"""Benchmarks of time and memory against sizes: rows, exponents, tables, picture, and the memory in use."""

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import new_processes
import pytest

growth = importlib.import_module("v1fast.benchmarks.growth")
scale = importlib.import_module("v1fast.benchmarks.scale")
pages = importlib.import_module("v1fast.benchmarks.pages")

MIB = 2**20
PAGE = Path(__file__).parents[1] / "docs/scale.md"


def points_of(series, sizes, power):
    """Rows of work whose time and whose memory beside 10 MiB grow with a power of its size."""
    made = []
    for size in sizes:
        needed = 10 * MIB + int(1000 * size**power)
        made.append(growth.Point(series, size, 1e-6 * size**power, 2 * needed, needed, needed, 10 * MIB))
    return made


POPULATION = points_of(growth.TRAINING, (1000, 10_000, 100_000, 1_000_000), 1.0)
STIMULI = points_of(growth.IN_MEMORY, (1000, 3000, 10_000), 2.0)
STREAMED = [replace(point, series=growth.COMPARED, needed=0, fixed=0) for point in STIMULI[:2]]


def test_exponents_are_those_of_the_powers_above_the_first_size_that_is_fitted():
    odd = [replace(POPULATION[0], seconds=5.0), *POPULATION[1:]]  # below that size
    assert growth.fit_of(odd, "seconds") == pytest.approx((1.0, 1e-6))
    assert growth.fit_of(odd, "peak") == pytest.approx((1.0, 1000), rel=1e-4)
    assert "time 1.00, memory in use 1.00" in growth.exponents(odd)
    assert "time 2.00, memory in use 2.00" in growth.exponents(STIMULI)
    assert "time 2.00" in growth.exponents(STREAMED)
    assert "memory" not in growth.exponents(STREAMED)  # nothing that it needs grows
    assert growth.fit_of(POPULATION[:2], "seconds") is None


def test_rows_come_back_from_their_file(tmp_path):
    growth.save(POPULATION + STREAMED, tmp_path / "new" / "rows.csv")
    assert growth.load(tmp_path / "new" / "rows.csv") == POPULATION + STREAMED


def test_plot_fills_the_page_and_draws_beside_it(tmp_path):
    pytest.importorskip("matplotlib")
    page = Path(shutil.copy(PAGE, tmp_path))
    for name, points in (("population", POPULATION), ("stimuli", STIMULI + STREAMED)):
        growth.save(points, tmp_path / f"{name}.csv")
    scale.draw(tmp_path, page)
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    text = page.read_text()
    assert "| 1,000,000 | 1.00 | 62 |" in text  # ns per neuron and image
    assert "| 10,000 | 100 | 95,377 |  |  |" in text  # not compared
    pages.fill(page, "population", scale.lines_of(POPULATION))
    assert page.read_text() == text


@pytest.mark.parametrize("series", growth.SERIES)
def test_work_of_each_kind(series, tmp_path):
    work = growth.work_of(series, 30, tmp_path)
    work.step()
    assert not list(tmp_path.iterdir())
    assert work.data > 0
    matrix = 4 * 30 * 29 // 2
    wanted = dict.fromkeys(growth.WAYS, 0) | {growth.IN_MEMORY: matrix}
    of_training = 4 * 4 * 30 * (64 + 7) + 2 * 4 * growth.IMAGES * (64 * 28 * 56 + 30)
    assert work.needed == wanted.get(series, of_training)


def test_ways_have_sizes_that_they_have_room_for():
    tasks = growth.tasks_of_stimuli([30_000, 40_000, 100_000])
    assert [size for way, size in tasks if way == growth.IN_MEMORY] == [30_000]
    assert [size for way, size in tasks if way == growth.TO_FILE] == [30_000, 40_000]
    assert [size for way, size in tasks if way == growth.COMPARED] == [30_000, 40_000, 100_000]


IN_USE = """
import torch
from v1fast.benchmarks import memory
known = memory.return_freed_memory()
def call():
    for _ in range(8):
        torch.ones(MIB)  # freed before the next
    return [torch.ones(MIB) for _ in range(3)]
call()
print(memory.peak_of(call, "cpu")[1] if known else "unknown")
""".replace("MIB", str(MIB))

# The gradients of a population's parameters and of small features; the outputs; and what a kernel copies beside them.
OF_PARTS = """
import torch
from v1fast import functional, ops
from v1fast.benchmarks import memory
known = ops.loaded["native"] == "loaded" and memory.return_freed_memory()
torch.set_num_threads(1)
def made(neurons):
    features = torch.randn(8, 64, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    return features, 2 * torch.rand(neurons, 2) - 1, torch.randn(64, neurons).t().requires_grad_()
def call(features, mu, weight):
    out = functional.gaussian_readout(features, mu, None, weight, None, 0.1 * torch.ones(8, 2))
    gradients = torch.autograd.grad(out, (features, weight), torch.ones_like(out))
    return 2 * out.nbytes + sum(one.nbytes for one in gradients)
for neurons in (20_000, 20_000, 100_000) if known else ():
    given = made(neurons)
    needed, peak = memory.peak_of(lambda: call(*given), "cpu")
print(peak - needed if known else "unknown")
"""


@pytest.mark.once
def test_the_memory_in_use_is_without_what_the_allocator_keeps():
    freed, of_parts = new_processes.run([IN_USE, OF_PARTS])
    assert freed == "unknown" or 12 * MIB <= int(freed) < 14 * MIB
    # The packed weights of a part and their gradients, 2 MiB each, what each neuron has, and pages.
    assert of_parts == "unknown" or int(of_parts) < 12 * MIB


@pytest.mark.slow
def test_measured_in_two_processes(tmp_path):
    tasks = [*growth.tasks_of_neurons([200, 400]), *growth.tasks_of_stimuli([50, 100])]
    points = growth.measure(tasks, tmp_path)
    assert [(point.series, point.size) for point in points] == tasks
    assert all(point.seconds > 0 for point in points)
    assert all(point.peak >= 0.9 * point.needed for point in points if point.series == growth.TRAINING)
