# `make bench` and `make test` install what they need on a fresh machine, and do only the work itself when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Versions that are supported beside the installed one, the oldest first.
TRITONS := 3.6.0 3.8.0 3.9.0
NEWER_TRITONS := 3.8.0 3.9.0
# What 3.9 says where a kernel does not state whether products and sums are fused: an error here.
STRICT := -W "error:TRITON_DEFAULT_FP_FUSION"
WORKERS ?= 2
CONSTRAINTS := constraints.txt

.PHONY: bench test lint typecheck tests contract distributed machine-code versions resources newest docs format clean
.DELETE_ON_ERROR:

bench: $(VENV)/.installed-bench
	$(BIN)/nntk-bench run --suite quick

test: lint typecheck tests

# Each of the workers computes on one thread; tests that share an expensive fixture run on the same worker.
tests: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m "not machine_code and not contract and not distributed"

# What judges many cases for minutes: situations and random modules, each of which is right or refused, every rule of
# propagation, the studies at quick sizes, learning of digits, and scikit-learn's checks. tests/contract/run_matrix.py
# judges architectures.
contract: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m contract

# Groups of 2, 3 and 4 processes that exchange numbers by gloo, some of which are killed or stopped.
distributed: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m distributed

# Everything that is compiled for a GPU without one: the tests that compile for minutes, other versions of Triton, and
# every kernel for seven architectures.
machine-code: $(VENV)/.installed-test versions resources
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m machine_code

# The other supported versions of Triton: their languages, their compilers and their defaults differ. The tests marked
# `machine_code` and `resources` do the same, with every kernel, by the version that is installed.
versions: $(VENV)/.installed-test $(VENV)/.installed-bench
	$(MAKE) --jobs $(WORKERS) --output-sync $(TRITONS:%=launches-%)
	$(MAKE) $(NEWER_TRITONS:%=sample-%)

# Every launch bound and compiled as if on a card.
launches-%: $(VENV)/triton-%
	cd tests && PYTHONPATH=$(CURDIR)/$< $(CURDIR)/$(BIN)/python $(STRICT) launch_on_absent_card.py

# Each kernel at least once, where it is nearest to a limit.
sample-%: $(VENV)/triton-%
	PYTHONPATH=$(CURDIR)/$< $(BIN)/python $(STRICT) -m nntk.bench resources --sample

# The folder is made under another name, so that it is whole if it exists.
$(TRITONS:%=$(VENV)/triton-%): $(VENV)/triton-%: $(VENV)/.installed-bench $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part triton==$*
	@rm -rf $@ && mv $@.part $@

# Every kernel compiled for seven GPUs without one: spills, lost tensor cores and lost instructions fail.
resources: $(VENV)/.installed-bench
	$(BIN)/nntk-bench resources

# What is tested, by the newest releases that pyproject.toml admits: an environment of its own, of several gigabytes.
newest:
	$(MAKE) tests contract distributed VENV=$(VENV)/newest CONSTRAINTS=/dev/null

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
