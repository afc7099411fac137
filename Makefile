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
# What Triton compiles for the emulated GPUs, and the emulator, are kept: a second run compiles what has changed.
export V1FAST_EMULATOR_CACHE ?= $(CURDIR)/build/emulator

.PHONY: demo test test-torch test-emulator test-slow test-sanitized test-peers test-gpu gpu-report gpu-table \
	mutate-gpu check format bench bench-baselines bench-fallback bench-frozen-core \
	bench-layers docs notebooks clean
demo: $(VENV)/.built
	$(BIN)/v1fast demo --out out/demo

# Those that run an op, three times: with the compiled kernels, with the fallback, and with the reference alone, so that
# no kernel is tested against itself. The latter two on one thread: on their small tensors a second one only waits. What
# is marked "once" is the same with any kernels: names, processes, what a layer traces to.
OP_TESTS := $(addprefix tests/test_,gaussian_readout.py philox.py full_gaussian2d.py gaussian2d.py \
	point_gather.py pooled_readout.py point_pooled2d.py point_pyramid2d.py rdm.py gaussian_variants.py factorized.py \
	retina.py other_readouts.py layers.py every_layer.py ln.py multi_readout.py accelerate.py rsa.py rsa_ops.py raw_ops.py \
	fuzz.py trial_sums.py metrics.py)
test: $(VENV)/.built
	$(BIN)/pytest -m "not slow"
	OMP_NUM_THREADS=1 V1FAST_KERNELS=fallback $(BIN)/pytest -m "not slow and not once" $(OP_TESTS)
	OMP_NUM_THREADS=1 V1FAST_KERNELS= $(BIN)/pytest -m "not slow and not once" $(OP_TESTS)

# With another torch than the pinned one, built for it in an environment of its own: make test-torch VERSION=2.8.0.
# docs/compatibility.md says what came of it. A wheel for CUDA is taken without the CUDA libraries, which nothing needs
# here. The oldest torch meets the oldest of the packages that v1fast needs.
VERSION ?= 2.8.0
OTHER := .venv-torch-$(VERSION)
OTHER_PIP := $(OTHER)/bin/python -m pip --disable-pip-version-check
TORCH_TESTS := $(OP_TESTS) $(addprefix tests/test_,doctor.py imports.py distributed.py fallback.py small_layers.py)
test-torch: $(OTHER)/.built
	$(OTHER)/bin/python -P -m v1fast.doctor
	$(OTHER)/bin/pytest -m "not slow" $(TORCH_TESTS)
	OMP_NUM_THREADS=1 V1FAST_KERNELS=fallback $(OTHER)/bin/pytest -m "not slow and not once" $(OP_TESTS)
	OMP_NUM_THREADS=1 V1FAST_KERNELS= $(OTHER)/bin/pytest -m "not slow and not once" $(OP_TESTS)
	$(OTHER)/bin/python -P -m v1fast.benchmarks.gpu_forms

# The emulator of GPUs by itself: every opcode against exact arithmetic. It changes rarely, so `make test` leaves it out.
test-emulator: $(VENV)/.built
	$(BIN)/pytest tests/ptx_emulator/tests

test-slow: $(VENV)/.built test-emulator
	$(BIN)/pytest -m slow

# The kernels for the CPU, built with AddressSanitizer and UndefinedBehaviorSanitizer into a folder of their own, which
# stands first on the path: the tests of the ops, and the fuzz. A finding ends the process. Minutes. The sanitizers come
# before all else, and so does the library whose exceptions they watch; what is never freed is Python's.
SANITIZED := build/sanitized
SANITIZED_TESTS := $(addprefix tests/test_,raw_ops.py fuzz.py instruction_sets.py philox.py point_gather.py \
	gaussian_readout.py pooled_readout.py rdm.py rsa_ops.py memory.py trial_sums.py)
SANITIZE := PYTHONPATH=$(SANITIZED)/lib V1FAST_KERNELS=native \
	ASAN_OPTIONS=detect_leaks=0,allocator_may_return_null=1,max_allocation_size_mb=2048 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) \
	$$(gcc -print-file-name=libstdc++.so)"
test-sanitized: $(SANITIZED)/.built
	$(SANITIZE) $(BIN)/pytest -m "not slow" $(SANITIZED_TESTS)
	$(SANITIZE) $(BIN)/pytest -m slow tests/test_fuzz.py

.PHONY: wheels check-wheels test-aarch64
# What a release is made of, in dist/: a wheel for each architecture, built here, and the sources. See docs/wheels.md.
AARCH64 := build/aarch64
wheels: $(VENV)/.wheels
	tools/aarch64.sh $(AARCH64) compilers
	rm -rf dist
	$(BIN)/python tools/wheels.py x86_64=g++ aarch64=$(CURDIR)/$(AARCH64)/bin/g++

$(VENV)/.wheels: $(VENV)/.deps requirements/wheels.txt
	$(PIP) install --quiet --requirement requirements/wheels.txt
	@touch $@

# In a fresh environment of each Python, all of which have torch: PYTHONS="environments/a/bin/python ..."
PYTHONS ?= $(PYTHON)
check-wheels:
	tools/check_wheel.sh "$$(echo dist/*manylinux*_$$(uname -m).whl)" $(PYTHONS)

# The kernels for ARM, compiled by each of two compilers and executed by an emulator, with torch 2.10: a few cases of what
# the tests compare with a reference. Needs Debian's or Ubuntu's packages, which it unpacks into build/; many minutes.
AARCH64_CXX   ?= g++ clang++
AARCH64_TESTS := $(addprefix tests/test_,philox.py trial_sums.py rsa_ops.py point_gather.py gaussian_readout.py \
	pooled_readout.py rdm.py ties.py)
AARCH64_CASES := matches or published or kernel_and_reference or frozen or sums_are or ranks_are or permut or \
	special_positions or pooled_levels or equal_dissimilarities or near_identical
test-aarch64: $(VENV)/.deps
	tools/aarch64.sh $(AARCH64) compilers
	PIP_PYTHON=$(BIN)/python tools/aarch64.sh $(AARCH64) python
	set -e; for compiler in $(AARCH64_CXX); do \
		built=$(AARCH64)/$$compiler; \
		$(BIN)/python tools/wheels.py --build-only --work $$built aarch64=$(CURDIR)/$(AARCH64)/bin/$$compiler; \
		V1FAST_KERNELS=native OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$$built/aarch64/build/lib \
			$(AARCH64)/bin/python -P -m pytest -p few_cases -p no:cacheprovider -k "$(AARCH64_CASES)" $(AARCH64_TESTS); \
	done

# On a real GPU, with the Python at hand (PYTHON=...), which has torch for CUDA, Triton and pytest: from the source tree,
# nothing is built. No kernel may pass as what replaces it: it is not checked before, and there is no fallback.
test-gpu:
	PYTHONPATH=. V1FAST_KERNELS=triton V1FAST_GPU_CHECK=0 $(PYTHON) -m pytest tests/test_cuda.py

# Are the GPU kernels right, how fast are they, and how fast could they be? Ten minutes on one GPU, from the source tree;
# nothing is built. It needs torch for CUDA, Triton and NumPy, and says what else it did not find. See docs/gpu.md.
OUT ?= out/gpu-report
gpu-report:
	PYTHONPATH=. $(PYTHON) -m v1fast.benchmarks.gpu_report $(OUT)

# Would one wrong instruction in a GPU kernel be noticed? Minutes; writes out/mutation. See docs/gpu-mutation.md.
mutate-gpu: $(VENV)/.built
	cd tests && ../$(BIN)/python -m gpu_mutation --out ../out/mutation

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

bench: $(VENV)/.built $(PEERS)/.installed
	V1FAST_PEERS=$(PEERS) $(BIN)/v1fast bench

# Are the bench's baselines as fast as the published layers? A ratio to a slow one says nothing.
bench-baselines: $(VENV)/.built $(PEERS)/.installed
	V1FAST_PEERS=$(PEERS) $(BIN)/pytest -s benchmarks/test_baselines.py

# What runs where nothing is compiled, beside eager torch.
bench-fallback: $(VENV)/.built $(PEERS)/.installed
	V1FAST_KERNELS=fallback V1FAST_PEERS=$(PEERS) $(BIN)/python -m v1fast.benchmarks.bench_fallback out/bench-fallback

# Layer beside layer, v1fast's and the published one that it stands in for, in training steps.
bench-layers: $(VENV)/.built $(PEERS)/.installed
	V1FAST_PEERS=$(PEERS) $(BIN)/python -m v1fast.benchmarks.bench_layers out/bench-layers

# Readouts on a frozen core: the core in every step, as in the peer, and features that are kept.
bench-frozen-core: $(VENV)/.built $(PEERS)/.installed
	V1FAST_PEERS=$(PEERS) $(BIN)/python -m v1fast.benchmarks.bench_frozen_core out/bench-frozen-core

# The documentation, into out/site. A broken link, a page that is not in the navigation or a public name that is not in
# the reference is an error. The pages load nothing from elsewhere.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open out/site/index.html"

# The scripts of examples/ that are written in cells, as executed notebooks in out/notebooks.
notebooks: $(VENV)/.built $(VENV)/.docs
	$(BIN)/python tools/docs/notebooks.py out/notebooks

clean:
	rm -rf $(VENV) .venv-torch-* $(PEERS) build dist out *.egg-info v1fast/*.so

# torch comes first and alone: with it absent, another package's open range would bring the newest CUDA build.
$(VENV)/.deps: requirements/constraints.txt requirements/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(PINNED) torch
	$(PIP) install --quiet $(PINNED) -r requirements/dev.txt
	@touch $@

$(VENV)/.built: $(VENV)/.deps pyproject.toml setup.py $(shell find csrc -type f)
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.docs: $(VENV)/.deps requirements/constraints.txt requirements/docs.txt
	$(PIP) install --quiet $(PINNED) -r requirements/docs.txt
	@touch $@

$(OTHER)/.deps: $(addprefix requirements/,constraints.txt oldest.txt other-torch.txt) tools/other_torch.py
	$(PYTHON) -m venv $(OTHER)
	$(OTHER_PIP) install --quiet --no-deps torch==$(VERSION)
	$(OTHER)/bin/python tools/other_torch.py stub
	$(OTHER)/bin/python tools/other_torch.py constraints > $(OTHER)/constraints.txt
	$(OTHER_PIP) install --quiet -c $(OTHER)/constraints.txt -r requirements/other-torch.txt \
		$$($(OTHER)/bin/python tools/other_torch.py requirements)
	@touch $@

# Not editable, and not in the folder of other builds: each environment has its own binary.
$(OTHER)/.built: $(OTHER)/.deps pyproject.toml setup.py $(shell find csrc -type f) \
		$(shell find v1fast kernels benchmarks -name "*.py")
	printf '[build]\nbuild_base = $(OTHER)/build\n' > $(OTHER)/build.cfg
	DIST_EXTRA_CONFIG=$(CURDIR)/$(OTHER)/build.cfg \
		$(OTHER_PIP) install --quiet --no-build-isolation --no-deps --force-reinstall .
	@touch $@

$(SANITIZED)/.built: $(VENV)/.deps pyproject.toml setup.py $(shell find csrc -type f) \
		$(shell find v1fast kernels benchmarks -name "*.py")
	V1FAST_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	@touch $@

# Beside the environment, not in it: the peers ask for other versions of what it holds.
$(PEERS)/.installed: $(VENV)/.deps requirements/peers.txt
	rm -rf $(PEERS)
	$(PIP) install --quiet --no-deps --target $(PEERS) --requirement requirements/peers.txt
	@touch $@
