"""The benchmarks: turns, statistics, gate, ratios and rows, with a clock that the steps set."""

import importlib
import json
import os
import sys
from dataclasses import astuple, fields, replace

import new_processes
import pytest
import torch

from v1fast import _eager


def _module(name):
    return importlib.import_module(f"v1fast.benchmarks.{name}")


layers = _module("bench_layers")
bench, contract, exact, harness = map(
    _module, ("bench_gaussian_readout", "contract", "exact_gaussian_readout", "harness")
)
memory, peers, report, rows, run = map(_module, ("memory", "peers.gaussian_readout", "report", "rows", "run"))
importing = _module("peers")

CEILING = {"threads": 1, "fma_gflops": {"best": 100.0}, "L2": {"read_gbs": {"best": 50.0}}}
RUN = {
    "machine": {"cpu": "a processor", "isa": "avx2+fma"},
    "versions": {"torch": "9", "v1fast": "8"},
    "kernels": {"native": "loaded"},
    "ceilings": [CEILING],
    "cuda_devices": [],
}
SHAPE = {"B": 1, "N": 2}
BASELINE, OTHER, OURS = "eager-nchw", "eager-channels-last", "v1fast"


class FakeClock(_module("clocks").Clock):
    name = "fake"

    def __init__(self):
        self.time = 0.0

    def stamp(self):
        return self.time

    def seconds(self, start, end):
        return end - start


class FakeCheck:
    upstream = torch.ones(1)

    def __init__(self, errors):
        self._errors = errors

    def errors(self, output, gradients):
        return self._errors


class FakeStep(contract.Step):
    """Each call takes the next of ``seconds`` = (draw, forward, backward), the last one again and again."""

    upstream = torch.ones(1)

    def __init__(self, clock, seconds, error=1e-7, noise=(None,), log=None, name=""):
        self.clock, self.seconds, self.error, self.noise = clock, list(seconds), error, noise
        self.log, self.name = [] if log is None else log, name

    def _take(self, phase):
        self.clock.time += self.seconds[0][phase]

    def draw(self):
        self.log.append(self.name)
        self._take(0)

    def forward(self, drawn):
        self._take(1)
        return torch.zeros(1)

    def backward(self, output, upstream):
        self._take(2)
        if len(self.seconds) > 1:
            self.seconds.pop(0)
        return {"weight": torch.zeros(1)}

    def check(self):
        return FakeCheck({"output": 1e-9, "weight": self.error})


@pytest.fixture
def clock():
    return FakeClock()


def contest(clock, steps, *, case=None, effort=None, baselines=(BASELINE, OTHER), **options):
    """``steps``: name -> step, or what preparing it raises."""

    def prepare(step):
        if isinstance(step, Exception):
            raise step
        return step

    providers = [
        contract.Provider(name, lambda step=step: prepare(step), baseline=name in baselines)
        for name, step in steps.items()
    ]
    case = case or contract.Case("a case", SHAPE, error_bound=1e-3)
    effort = effort or harness.Effort(rounds=1, seconds=1e9, turn=0, lasting=1e9)
    return harness.Contest("an op", case, providers, clock=clock, effort=effort, now=clock.stamp, **options)


def measured(clock, steps, **options):
    """Rows by provider and kind of noise."""
    made = contest(clock, steps, **options)
    made.run()
    return {(row.provider, row.noise): row for row in made.rows(RUN)}


def test_turns_rotate(clock):
    log = []
    steps = {name: FakeStep(clock, [(0, 1, 1)], log=log, name=name) for name in "abc"}
    made = contest(clock, steps, effort=harness.Effort(rounds=4, seconds=1e9, turn=0, lasting=1.0))
    made.run()
    assert "".join(log) == "abc" + "bca" + "cab" + "abc"


def test_medians_and_quartiles(clock):
    # the first call is not counted: it warms up
    step = FakeStep(clock, [(0, 99, 99), *((0, f, 10 * f) for f in (0.004, 0.001, 0.003, 0.002, 0.005))])
    row = measured(clock, {"a": step}, effort=harness.Effort(rounds=1, seconds=1e9, turn=0.16, lasting=1e9))["a", None]
    assert row.observations == 5
    assert astuple(row.milliseconds["forward"]) == pytest.approx((2, 3, 4))
    assert astuple(row.milliseconds["backward"]) == pytest.approx((20, 30, 40))
    assert astuple(row.milliseconds["step"]) == pytest.approx((22, 33, 44))


def test_short_calls_are_timed_together(clock):
    calls = [(0, 0.0002, 0.0003)] + [(0, f, 0) for f in (0.0001, 0.0002, 0.0003, 0.0002)]
    log = []
    row = measured(clock, {"a": FakeStep(clock, calls, log=log)})["a", None]
    assert len(log) == 1 + 4  # 4 calls of 0.5 ms fill one observation of 2 ms
    assert row.observations == 1
    assert row.milliseconds["forward"].median == pytest.approx(0.2)


def test_a_long_first_call_counts(clock):
    effort = harness.Effort(rounds=1, seconds=1e9, turn=0, lasting=5)
    steps = {"long": FakeStep(clock, [(0, 2, 4), (0, 1, 1)]), "short": FakeStep(clock, [(0, 2, 2), (0, 1, 1)])}
    found = measured(clock, steps, effort=effort)
    assert found["long", None].milliseconds["step"].median == pytest.approx(6000)
    assert found["short", None].milliseconds["step"].median == pytest.approx(2000)


def test_a_later_turn_begins_with_a_call_that_is_not_counted(clock):
    calls = [(0, 1, 1), (0, 2, 2), (0, 50, 50), (0, 3, 3), (0, 1, 1)]
    effort = harness.Effort(rounds=2, seconds=1e9, turn=0, lasting=5)
    row = measured(clock, {"a": FakeStep(clock, calls)}, effort=effort)["a", None]
    assert row.milliseconds["step"].median == pytest.approx(5000)  # of 4 s and 6 s


def test_a_beaten_baseline_takes_no_further_turns(clock):
    """Unless it is the fastest, or nearly so, in the forward pass alone. Others go on however slow they are."""
    log = []
    times = {BASELINE: (0, 10, 10), OTHER: (0, 16, 15), "fast-forward": (0, 8, 60), "slow-other": (0, 90, 90)}
    steps = {name: FakeStep(clock, [seconds], log=log, name=name) for name, seconds in times.items()}
    effort = harness.Effort(rounds=3, seconds=1e9, turn=0, lasting=1.0)
    found = measured(clock, steps, effort=effort, baselines=(BASELINE, OTHER, "fast-forward"))
    assert {name: log.count(name) for name in steps} == {BASELINE: 3, OTHER: 1, "fast-forward": 3, "slow-other": 3}
    assert found[OTHER, None].measured


@pytest.mark.parametrize("error", [2e-3, float("nan"), float("inf")])
def test_no_time_beyond_the_error_bound(clock, error):
    log = []
    steps = {"wrong": FakeStep(clock, [(0, 1, 1)], error=error, log=log), "right": FakeStep(clock, [(0, 1, 1)])}
    found = measured(clock, steps)
    wrong = found["wrong", None]
    assert wrong.milliseconds == wrong.speedup == wrong.limit_fraction == {}
    assert wrong.status == f"not timed: error {error:.2g} in weight, beyond 0.001"
    assert not wrong.measured
    assert len(log) == 1
    assert found["right", None].measured
    assert found["right", None].errors == {"output": 1e-9, "weight": 1e-7}


def test_an_absent_provider_says_why(clock):
    found = measured(clock, {"gone": contract.Absent("not installed"), "here": FakeStep(clock, [(0, 1, 1)])})
    assert found["gone", None].status == "not installed"
    assert found["gone", None].milliseconds == {}
    assert found["here", None].measured


def test_nobody_there(clock):
    found = measured(clock, {"gone": contract.Absent("not installed")}, effort=harness.Effort(rounds=9))
    assert [row.status for row in found.values()] == ["not installed"]


def test_ratio_against_the_better_baseline(clock):
    found = measured(
        clock,
        {
            BASELINE: FakeStep(clock, [(0, 10, 40)]),
            OTHER: FakeStep(clock, [(0, 20, 20)]),
            "wrong-eager": FakeStep(clock, [(0, 1, 1)], error=1.0),
            OURS: FakeStep(clock, [(0, 2, 2)]),
        },
        baselines=(BASELINE, OTHER, "wrong-eager"),
    )
    ours = found[OURS, None].speedup
    assert ours["forward"] == rows.Speedup(5, BASELINE)
    assert ours["backward"] == rows.Speedup(10, OTHER)
    assert ours["step"] == rows.Speedup(10, OTHER)
    assert found[BASELINE, None].speedup["step"] == rows.Speedup(0.8, OTHER)


def test_no_ratio_without_a_baseline(clock):
    assert measured(clock, {OURS: FakeStep(clock, [(0, 2, 2)])})[OURS, None].speedup == {}


def test_drawn_noise_counts_given_noise_does_not(clock):
    found = measured(
        clock,
        {
            BASELINE: FakeStep(clock, [(3, 10, 1)], noise=("seed", "given")),
            OURS: FakeStep(clock, [(0.5, 1.5, 1)], noise=("seed",)),
            "v1fast given": FakeStep(clock, [(9, 5, 1)], noise=("given",)),
        },
        case=contract.Case("a case", SHAPE, noise=("seed", "given")),
    )
    assert found[BASELINE, "seed"].milliseconds["forward"].median == pytest.approx(13000)
    assert found[BASELINE, "given"].milliseconds["forward"].median == pytest.approx(10000)
    assert found[OURS, "seed"].speedup["forward"].times == pytest.approx(6.5)
    assert found["v1fast given", "given"].speedup["forward"].times == pytest.approx(2)


def test_a_forward_pass_alone(clock):
    step = FakeStep(clock, [(0, 2, 100)])
    step.upstream = None
    assert measured(clock, {"a": step})["a", None].milliseconds.keys() == {"forward"}


def test_rounds_keep_to_the_budget(clock):
    def rounds(seconds):
        made = contest(
            clock,
            {"a": FakeStep(clock, [(0, 1, 1)])},
            effort=harness.Effort(rounds=7, seconds=seconds, turn=0, lasting=1.0),
        )
        made.run()
        return made.rounds

    # each round lasts 2 s
    assert [rounds(seconds) for seconds in (0, 3.9, 4, 9, 1000)] == [1, 1, 2, 4, 7]


def test_preparing_is_not_in_the_budget(clock):
    step = FakeStep(clock, [(0, 1, 1)])

    def compile_for_long():
        clock.time += 1000

    step.warm_up = compile_for_long
    made = contest(clock, {"a": step}, effort=harness.Effort(rounds=3, seconds=10, turn=0, lasting=1.0))
    made.run()
    assert made.rounds == 3


def test_an_interrupt_keeps_what_was_measured(clock):
    class Interrupted(FakeStep):
        def forward(self, drawn):
            if clock.time > 5:
                raise KeyboardInterrupt
            return super().forward(drawn)

    steps = {"a": FakeStep(clock, [(0, 1, 1)]), "b": Interrupted(clock, [(0, 1, 1)])}
    made = contest(clock, steps, effort=harness.Effort(rounds=50, seconds=1e9, turn=0, lasting=1.0))
    with pytest.raises(KeyboardInterrupt):
        made.run()
    # turns: a b, b a, a and then b is interrupted
    assert {row.provider: row.observations for row in made.rows(RUN)} == {"a": 3, "b": 2}


def test_threads_are_set_and_restored(clock):
    before, seen = torch.get_num_threads(), []
    step = FakeStep(clock, [(0, 1, 1)])
    step.draw = lambda: seen.append(torch.get_num_threads())
    contest(clock, {"a": step}, threads=2).run()
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


def test_fraction_of_the_limit(clock):
    work = {"forward": contract.Work(flops=100e9, bytes=10e9), "backward": contract.Work(flops=100e9, bytes=100e9)}
    case = contract.Case("a case", SHAPE, work=work)
    found = measured(clock, {"a": FakeStep(clock, [(0, 4, 4)])}, case=case)["a", None].limit_fraction
    # 1 s of arithmetic; 2 s of reading
    assert found == pytest.approx({"forward": 0.25, "backward": 0.5, "step": 0.375})
    found = measured(clock, {"a": FakeStep(clock, [(0, 4, 4)])}, case=case, threads=2)["a", None].limit_fraction
    assert found == {}  # this run measured no ceilings for two threads


def test_rows_are_complete_lines_of_json(clock, tmp_path):
    steps = {BASELINE: FakeStep(clock, [(0, 1, 1)]), "gone": contract.Absent("why"), OURS: FakeStep(clock, [(0, 1, 1)])}
    made = contest(clock, steps)
    made.run()
    path = tmp_path / "new" / "rows.jsonl"
    rows.write(path, [])
    rows.write(path, made.rows(RUN))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["provider"] for line in lines] == [BASELINE, "gone", OURS]
    for line in lines:
        assert line.keys() == {field.name for field in fields(rows.Row)}
        assert line["run"] == RUN
        assert (line["op"], line["case"], line["shape"], line["clock"]) == ("an op", "a case", SHAPE, "fake")
    assert lines[2]["milliseconds"]["step"] == {"q1": 2000, "median": 2000, "q3": 2000}
    assert lines[2]["speedup"]["step"] == {"times": 1, "against": BASELINE}
    assert lines[1]["status"] == "why"
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_peak_memory_is_seen():
    kept = []

    def call():
        torch.ones(20_000_000)  # 76 MiB, gone at once
        kept.append(torch.ones(5_000_000))

    torch.ones(60_000_000)  # an earlier, higher peak
    _, peak = memory.peak_of(call, "cpu")
    if peak is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 72 * 2**20 < peak < 110 * 2**20


CASE = exact.ReadoutCase("a case", {"B": 3, "C": 4, "H": 5, "W": 6, "N": 7}, noise=("seed", "given"))


@pytest.mark.parametrize(
    "case", [CASE, exact.ReadoutCase("eval", CASE.shape, gradients=())], ids=lambda case: case.name
)
def test_every_provider_is_right(case):
    for provider in bench.providers(case, "cpu"):
        if provider.name.removesuffix("-nchw") in ("compile", *peers.NAMES):
            continue
        step = provider.prepare()
        torch.manual_seed(1)
        check = step.check()
        torch.manual_seed(1)
        output = step.forward(step.draw())
        gradients = step.backward(output, check.upstream) if case.gradients else {}
        errors = check.errors(output, gradients)
        assert errors.keys() == {"output", *case.gradients}, provider.name
        assert max(errors.values()) < 2e-6, (provider.name, errors)


@pytest.mark.parametrize("name", ["output", "features", "mu", "sigma", "weight", "bias"])
def test_the_check_sees_a_wrong_result(name):
    step = next(bench.providers(CASE, "cpu")).prepare()
    torch.manual_seed(1)
    check = step.check()
    torch.manual_seed(1)
    output = step.forward(step.draw())
    results = {"output": output.detach(), **step.backward(output, check.upstream)}
    results[name] = results[name] * 1.01
    errors = check.errors(results.pop("output"), results)
    assert errors.pop(name) == pytest.approx(0.01, rel=1e-3)
    assert max(errors.values()) < 2e-6


def test_positions_at_a_border_carry_no_gradient():
    inside, centre_of_pixel, clamped, just_clamped = [0.5, 0.5], [0.2, 0.5], [0.5, 5 / 3], [0.5, 1 + 1e-6]
    mu = torch.tensor([inside, centre_of_pixel, clamped, just_clamped, [-0.2, -1.0]])
    given = exact.Operands(*[torch.zeros(1)] * 5, upstream=torch.ones(2, 5))
    given = exact.Operands(**{**vars(given), "mu": mu, "sigma": torch.zeros(5, 2, 2)})
    case = exact.ReadoutCase("a case", {"B": 2, "C": 1, "H": 4, "W": 6, "N": 5})
    at_border = exact._at_border(case, given, None)
    assert at_border.tolist() == [[False, True, False, True, True]] * 2
    noise = torch.zeros(2, 5, 2)
    assert exact._at_border(case, given, noise).tolist() == at_border.tolist()
    assert _eager.distance_to_cell_border(mu[:1], 4, 6).min() == pytest.approx(0.25)


def test_a_lone_baseline_is_told(clock):
    both = {
        BASELINE: FakeStep(clock, [(0, 1, 1)]),
        OTHER: FakeStep(clock, [(0, 2, 2)]),
        OURS: FakeStep(clock, [(0, 1, 1)]),
    }
    for steps, told in ((both, False), ({name: both[name] for name in (OTHER, OURS)}, True)):
        made = contest(clock, steps)
        made.run()
        lines = list(report.footnotes(made.rows(RUN)))
        assert any(line.startswith(f"a case: compared with {OTHER} alone") for line in lines) == told


def test_the_table_shows_the_better_baseline_and_given_noise_only_for_v1fast(clock):
    noise = ("seed", "given")
    steps = {
        BASELINE: FakeStep(clock, [(1, 2, 3)], noise=noise),
        OTHER: FakeStep(clock, [(1, 4, 3)], noise=noise),
        OURS: FakeStep(clock, [(0, 1, 1)], noise=noise),
    }
    made = contest(clock, steps, case=contract.Case("a case", SHAPE, noise=noise))
    made.run()
    cells = list(report.table(made.rows(RUN), "a title").columns[1].cells)
    assert cells == [BASELINE, OURS, "v1fast, noise given"]


def test_the_plan_compares():
    for case in bench.CASES:
        chosen = bench.plan(case, 1)
        assert set(chosen) <= set(bench.NAMES)
        assert "v1fast" in chosen
        assert set(chosen) & set(bench.BASELINES)
        assert {provider.name for provider in bench.providers(case, "cpu")} <= set(bench.NAMES)


def test_eager_orders_agree():
    torch.manual_seed(0)
    features = torch.randn(19, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    grid = (1.8 * torch.rand(5, 2, dtype=torch.float64) - 0.9).requires_grad_()
    weight = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(19, 5, dtype=torch.float64)
    found = {}
    for order in _eager.ORDERS:
        out = _eager.pooled_readout(features, grid, weight, pool_kernel=2, pool_steps=2, order=order)
        found[order] = out, *torch.autograd.grad(out, (features, grid, weight), upstream)
    assert len(found) == 4
    for order, tensors in found.items():
        for got, want in zip(tensors, found["chain"], strict=True):
            torch.testing.assert_close(got, want, msg=order)


def test_an_absent_peer_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "neuralpredictors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Hidden("neuralpredictors"), *sys.meta_path])
    with pytest.raises(contract.Absent, match="not installed: pip install --no-deps neuralpredictors"):
        peers.load("neuralpredictors")
    assert not any(hasattr(sys.modules.get(name), "__getattr__") for name in importing._STAND_INS)


class _Hidden:
    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)


def test_bench_command(tmp_path):
    runner, app = pytest.importorskip("typer.testing").CliRunner(), pytest.importorskip("v1fast.cli").app
    pytest.importorskip("matplotlib")
    names = ("--provider", "eager-chain-nchw", "--provider", "eager-chain", "--provider", "v1fast")
    result = runner.invoke(app, ["bench", "--quick", "--case", "tiny", "--out", str(tmp_path), *names])
    assert result.exit_code == 0, result.output
    for text in ("tiny", "1x8x5x5x10", "v1fast, noise given", "rows.jsonl"):
        assert text in result.output
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == (4 + 2) * len({line["threads"] for line in lines})
    assert {line["status"] for line in lines} == {"measured"}
    assert all(line["speedup"] and line["errors"] and line["run"]["kernels"] for line in lines)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--case", "huge"], ["--provider", "magic"], ["--device", "tpu"]])
def test_bench_command_refuses_what_it_does_not_know(tmp_path, arguments):
    runner, app = pytest.importorskip("typer.testing").CliRunner(), pytest.importorskip("v1fast.cli").app
    wide = {"COLUMNS": "1000"}  # else the list of known names is broken into lines
    result = runner.invoke(app, ["bench", "--out", str(tmp_path / "none"), *arguments], env=wide)
    assert result.exit_code == 2
    assert f"got '{arguments[1]}'" in result.stderr
    assert not (tmp_path / "none").exists()


def test_an_interrupted_run_keeps_its_rows(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    measure = harness.Contest.run

    def interrupted(self):
        measure(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(harness.Contest, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.main(tmp_path, cases=["tiny"], providers=["v1fast"], quick=True)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["noise"] for line in lines] == ["seed", "given"]
    assert (tmp_path / "speed.png").exists()


@pytest.mark.parametrize("case", layers.CASES, ids=lambda case: case.name)
def test_layers_of_the_bench(case):
    """Each runs, as v1fast's providers and, where it is an expression in the bench, as the peer."""
    small = replace(case, shape=case.shape | {"B": 3, "N": 4} | ({"T": 2} if "T" in case.shape else {}))
    taking_part = [p for p in layers.providers(small) if not (p.baseline and small.peer)]
    assert len(taking_part) == (4 if not small.peer else 2)
    for provider in taking_part:
        step = provider.prepare()
        output = step.forward(None)
        gradients = step.backward(output, step.upstream)
        assert output.shape == step.upstream.shape
        assert set(gradients) == {"features", *step.parameters}
        assert gradients["features"].abs().sum() > 0
        if not small.peer:
            assert max(step.check().errors(output, gradients).values()) < 1e-5


WITHOUT_TRITON = """
import runpy, sys
sys.modules["triton"] = None
sys.argv = ["a program", *{arguments}]
try:
    runpy.run_module("v1fast.benchmarks.{name}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end)
"""


@pytest.mark.once
def test_programs_without_triton():
    """What needs no kernel of a GPU runs; what is about them says so in one line."""
    environment = os.environ | {"V1FAST_KERNELS": "", "PYTHONWARNINGS": "ignore"}
    programs = {"scale": ["predict"], "gpu_table": ["page.md"], "gpu_costs_rdm": [], "gpu_report": ["out"]}
    codes = [WITHOUT_TRITON.format(name=name, arguments=arguments) for name, arguments in programs.items()]
    table, *others = new_processes.run(codes, environment)
    assert table.startswith("| neurons | GPUs |")
    for line in others:
        assert line.startswith("v1fast: this needs the GPU kernels, and they need Triton: "), line
        assert "\n" not in line
