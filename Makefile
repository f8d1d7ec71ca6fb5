# Every target makes its own .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# KubeRay's CRDs, by which manifests are checked where they are at hand.
export RAYMLOPS_CRDS ?= $(abspath $(wildcard ../shared/crds))

.PHONY: demo test lint unit clusters integration e2e soak bench lock newest clean

demo: .venv/.recipes
	$(BIN)/raymlops demo

# One process checks types; beside it what tests import is compiled, on the other core.
test:
	$(MAKE) .venv/.dev
	$(MAKE) -j 2 -O lint .venv/.compiled
	$(MAKE) unit clusters

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Threads of BLAS and OpenMP of three workers on two cores mostly wait for each other, and burn both as they do.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# Some tests wait for other processes, so three run side by side on two cores.
unit: .venv/.compiled
	$(ONE_THREAD) $(BIN)/pytest tests/unit tests/ports -q -n 3 -m 'not soak'

# Both tiers mostly wait for processes that start, so two files run side by side, each with clusters of its own; long ones
# first (tests/e2e/conftest.py), since what comes last has nothing beside it. Ray workers are nice (node_environment.py): a
# replica would get a third of a core while the other file computes.
clusters: .venv/.compiled
	RAY_worker_niceness=0 $(BIN)/pytest tests/e2e tests/integration -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not soak'

integration: .venv/.compiled
	$(BIN)/pytest tests/integration -q -m 'not soak'

e2e: .venv/.compiled
	$(BIN)/pytest tests/e2e -q -m 'not soak'

# Long runs, by hand: a folder of them, and what is marked as one beside shorter ones of its kind.
soak: .venv/.compiled
	$(BIN)/pytest tests/soak -q
	$(BIN)/pytest tests/unit tests/ports tests/integration tests/e2e -q -m soak

bench: .venv/.dev
	$(BIN)/python tests/benchmarks/train_overhead.py
	$(BIN)/python tests/benchmarks/data_loading.py
	$(BIN)/python tests/benchmarks/fsdp_memory.py
	$(BIN)/python tests/benchmarks/serve_latency.py
	$(BIN)/python tests/benchmarks/sweep_throughput.py
	$(BIN)/python tests/benchmarks/sweep_quality.py
	$(BIN)/python tests/benchmarks/prediction_log.py
	$(BIN)/python tests/benchmarks/drift_scan.py
	$(BIN)/python tests/benchmarks/drift_between_columns.py
	$(BIN)/python tests/benchmarks/canary_simulation.py --rollouts 200
	$(BIN)/python tests/benchmarks/quality_simulation.py --runs 200

# Every lock file, from pyproject.toml; TORCH=2.14.0 is another release of PyTorch.
lock:
	uv run --no-project --python 3.11 deploy/image/lock.py $(TORCH)

# The unit tests with the newest releases that install together: what breaks is printed.
newest:
	$(ONE_THREAD) $(PYTHON) tests/newest.py

LOCKS := $(addprefix deploy/image/,requirements.txt torch-cuda.txt dev.txt tools.txt)
# The versions of the lock without their digests, which pip cannot ask of a checkout. Packages are built by locked ones too.
INSTALL = PIP_CONSTRAINT=$(abspath .venv/lock.txt) PIP_BUILD_CONSTRAINT=$(abspath .venv/lock.txt) $(BIN)/pip install -q

.venv/lock.txt: $(LOCKS)
	test -d .venv || $(PYTHON) -m venv .venv
	sed -n 's/ \\$$//; /^[a-z0-9].*==/p' $(LOCKS) > $@

.venv/.recipes: pyproject.toml .venv/lock.txt
	$(INSTALL) -e '.[recipes]'
	@touch $@

.venv/.dev: pyproject.toml .venv/lock.txt
	$(INSTALL) --no-compile -e '.[dev]'
	@touch $@ .venv/.recipes

# Where PYTHONDONTWRITEBYTECODE is set, each process of a test would compile anew what is not compiled. Passed over are
# packages' own tests, a sixth of all, and the file of torch that is written for Python 3.12 and later. Of tests pytest
# rewrites all assertions: here once, and not in each worker that starts.
.venv/.compiled: .venv/.dev
	$(BIN)/python -m compileall -qq -x '/tests?/|/py312_intrinsics' .venv/lib raymlops
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest tests/unit tests/ports --collect-only -qq > $@ || { cat $@; rm $@; exit 1; }
	@touch $@

clean:
	rm -rf .venv .venv-newest .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
