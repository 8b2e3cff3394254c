# `make bench` and `make test` install what they need on a fresh machine, and do only the work itself when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDER_TRITON := 3.6.0
WORKERS ?= 2

.PHONY: bench test lint typecheck tests contract distributed machine-code launches resources docs format clean
.DELETE_ON_ERROR:

bench: $(VENV)/.installed-bench
	$(BIN)/nntk-bench run --suite quick

test: lint typecheck tests

# Each of the workers computes on one thread; tests that share an expensive fixture run on the same worker.
tests: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m "not machine_code and not contract and not distributed"

# Situations and random modules, each of which is right or refused; tests/contract/run_matrix.py judges architectures.
contract: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m contract

# Groups of 2, 3 and 4 processes that exchange numbers by gloo, some of which are killed or stopped.
distributed: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m distributed

# Everything that is compiled for a GPU without one: the tests that compile for minutes, launches by an older Triton,
# and every kernel for seven architectures.
machine-code: $(VENV)/.installed-test launches resources
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m machine_code

# Every launch bound and compiled as if on a card, by the oldest supported Triton: its language differs. The tests
# marked `machine_code` do the same by the Triton that is installed.
launches: $(VENV)/.installed-test $(VENV)/triton-$(OLDER_TRITON)
	cd tests && PYTHONPATH=$(CURDIR)/$(VENV)/triton-$(OLDER_TRITON) $(CURDIR)/$(BIN)/python launch_on_absent_card.py

$(VENV)/triton-$(OLDER_TRITON): $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part triton==$(OLDER_TRITON)
	@rm -rf $@ && mv $@.part $@

# Every kernel compiled for seven GPUs without one: spills, lost tensor cores and lost instructions fail.
resources: $(VENV)/.installed-bench
	$(BIN)/nntk-bench resources

# Every example is run first. Pages are built without a network; a warning, such as a broken link, is an error.
docs: $(VENV)/.installed-test $(VENV)/.installed-docs
	$(BIN)/python -m pytest -q tests/house/test_documentation.py
	$(BIN)/python -m sphinx -b html -c docs -n -W --keep-going -q . docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-test
	$(BIN)/mypy -p nntk

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
