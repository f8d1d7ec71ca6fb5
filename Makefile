# Every target makes its own .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# KubeRay's CRDs, by which manifests are checked where they are at hand.
export RAYMLOPS_CRDS ?= $(abspath $(wildcard ../shared/crds))

.PHONY: demo test lint unit clusters integration e2e soak bench clean

demo: .venv/.recipes
	$(BIN)/raymlops demo

test: lint unit clusters

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Some tests wait for other processes, so three run side by side on two cores.
unit: .venv/.dev
	$(BIN)/pytest tests/unit tests/ports -q -n 3 -m 'not soak'

# Both tiers mostly wait for processes that start, so two files run side by side, each with clusters of its own; long ones
# first (tests/e2e/conftest.py), since what comes last has nothing beside it.
clusters: .venv/.dev
	$(BIN)/pytest tests/e2e tests/integration -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not soak'

integration: .venv/.dev
	$(BIN)/pytest tests/integration -q -m 'not soak'

e2e: .venv/.dev
	$(BIN)/pytest tests/e2e -q -m 'not soak'

# Long runs, by hand: a folder of them, and what is marked as one beside shorter ones of its kind.
soak: .venv/.dev
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

.venv/.recipes: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[recipes]'
	@touch $@

# pip compiles on one core; and where PYTHONDONTWRITEBYTECODE is set, each process of a test would compile raymlops anew.
# Passed over are packages' own tests, a sixth of all, and the file of torch that is written for Python 3.12 and later.
.venv/.dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/py312_intrinsics' .venv/lib raymlops
	@touch $@ .venv/.recipes

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
