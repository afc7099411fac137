# Every target sets up what it needs from a fresh clone, and a second call repeats no set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .peers
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PINNED := -c requirements/constraints.txt

export V1FAST_REQUIRE_NATIVE = 1
# Threads that spin while they wait slow each other down where cores are shared.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow test-peers test-gpu gpu-table mutate-gpu check format bench bench-layers clean
demo: $(VENV)/.built
	$(BIN)/v1fast demo --out out/demo

# Those that run an op, twice: with the compiled kernels, and with the reference alone, so that no kernel is tested
# against itself.
OP_TESTS := $(addprefix tests/test_,gaussian_readout.py philox.py full_gaussian2d.py gaussian2d.py \
	point_gather.py pooled_readout.py point_pooled2d.py point_pyramid2d.py rdm.py gaussian_variants.py factorized.py \
	retina.py other_readouts.py ln.py multi_readout.py accelerate.py rsa.py rsa_ops.py trial_sums.py metrics.py)
test: $(VENV)/.built
	$(BIN)/pytest -m "not slow"
	V1FAST_KERNELS= $(BIN)/pytest -m "not slow" $(OP_TESTS)

test-slow: $(VENV)/.built
	$(BIN)/pytest -m slow

# On a real GPU, with the Python at hand (PYTHON=...), which has torch for CUDA, Triton and pytest: from the source tree,
# nothing is built.
test-gpu:
	PYTHONPATH=. V1FAST_KERNELS=triton $(PYTHON) -m pytest tests/test_cuda.py

# Would one wrong instruction in a GPU kernel be noticed? Minutes; writes out/mutation. See docs/gpu-mutation.md.
mutate-gpu: $(VENV)/.built
	cd tests && ../$(BIN)/python -m mutation --out ../out/mutation

# Registers, shared memory and spills of the GPU kernels, from the compiler; minutes, and no GPU.
gpu-table: $(VENV)/.built
	$(BIN)/python -m v1fast.benchmarks.gpu_table docs/gpu-kernels.md

# Side by side with the published packages that v1fast's layers stand in for.
test-peers: $(VENV)/.built $(PEERS)/.installed
	V1FAST_PEERS=$(PEERS) $(BIN)/pytest tests/peers

check: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files csrc)
	$(BIN)/mypy

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files csrc)

bench: $(VENV)/.built
	$(BIN)/v1fast bench

# Layer beside layer, v1fast's and the published one that it stands in for, in training steps.
bench-layers: $(VENV)/.built $(PEERS)/.installed
	V1FAST_PEERS=$(PEERS) $(BIN)/python -m v1fast.benchmarks.bench_layers out/bench-layers

clean:
	rm -rf $(VENV) $(PEERS) build dist out *.egg-info v1fast/*.so

# torch comes first and alone: with it absent, another package's open range would bring the newest CUDA build.
$(VENV)/.deps: requirements/constraints.txt requirements/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(PINNED) torch
	$(PIP) install --quiet $(PINNED) -r requirements/dev.txt
	@touch $@

$(VENV)/.built: $(VENV)/.deps pyproject.toml setup.py $(shell find csrc -type f)
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# Beside the environment, not in it: the peers ask for other versions of what it holds.
$(PEERS)/.installed: $(VENV)/.deps requirements/peers.txt
	rm -rf $(PEERS)
	$(PIP) install --quiet --no-deps --target $(PEERS) --requirement requirements/peers.txt
	@touch $@
