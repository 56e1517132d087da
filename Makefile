# Every target sets itself up: Python 3.11 or newer, make, and the package registry are all it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Small matrices on a busy machine: a second BLAS thread waits for its core far longer than it helps.
export OPENBLAS_NUM_THREADS := 1
export OMP_NUM_THREADS := 1

.PHONY: demo test test-slow check format docs-figures accuracy gradients speed clean

demo: $(READY)
	$(BIN)/python examples/weigh_outer_planets.py --out out

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs-figures: $(READY)
	$(BIN)/python examples/learned_damping.py --out docs/figures
	$(BIN)/python examples/three_body.py --out docs/figures

accuracy: $(READY)
	$(BIN)/python -m benchmarks.accuracy --long

gradients: $(READY)
	$(BIN)/python -m benchmarks.gradients

# Beside other libraries, which are installed for it; the command sets the threads of its processes itself.
speed: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.speed

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[orbital,test,dev]"
	touch $(READY)

clean:
	rm -rf .venv out
