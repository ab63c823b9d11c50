# `make demo` shows the subject, `make test` checks everything. Each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench docs reproduce reproduce-collapse reproduce-tickets reproduce-tickets-full \
  reproduce-descent clean

$(VENV)/.installed: pyproject.toml constraints.txt $(addprefix src/nucleate/compact/native/,kernel.c kernel.h product.inc) $(wildcard src/nucleate/geometry/native/stream.*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/nucleate claims --quick

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench: $(VENV)/.dev
	for name in collapse_suite neighbours probe pruning engine sparse sparse_training; do $(BIN)/python benchmarks/$$name.py || exit 1; done

docs: $(VENV)/.dev
	rm -rf docs/_build
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Long runs whose results are kept, dated, under benchmarks/results/.
reproduce: reproduce-collapse reproduce-tickets

reproduce-collapse: $(VENV)/.installed
	$(BIN)/python benchmarks/collapse_recipes.py digits-mlp --seeds 0 1 2 3 4 5 6 7 8 9
	$(BIN)/python benchmarks/collapse_recipes.py mnist-mlp fashion-convnet --threads 2

# The lottery ticket paper's LeNet figure: the short form in minutes, the full one in hours; both need MNIST.
reproduce-tickets: $(VENV)/.installed
	$(BIN)/nucleate tickets lenet-300-100 --each 0 1 2 --jobs 2

reproduce-tickets-full: $(VENV)/.installed
	$(BIN)/nucleate tickets lenet-300-100-full --each 0 1 2 3 4 --jobs 2

# Error along width on digits and on MNIST, a minute each; with convolutions on Fashion-MNIST, up to an hour.
reproduce-descent: $(VENV)/.installed
	for name in digits-mlp digits-mlp-10 digits-mlp-clean mnist-mlp fashion-convnet; do $(BIN)/nucleate descent $$name || exit 1; done

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .ruff_cache .pytest_cache
