# `make` lists the targets. Needs Python 3.11, 3.12 or 3.13 with venv; everything else goes into $(VENV).

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c "$(SUPPORTED)" 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
UV ?=# make UV=uv installs in a quarter of pip's time; it does not read pip's configuration
DEMO ?= build/demo
BIN := $(VENV)/bin
ROOMS := storage tasks workflows
CODE := $(ROOMS) benchmarks examples tests docs
PROCESSES ?= 2
# One thread each, unless OMP_NUM_THREADS says more. Bytecode is kept: hundreds of processes start. At the end comes what
# was skipped and what took longest.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile \
	--no-loadscope-reorder -rs --durations=10

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-quick lint types contracts check format reference constraints clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo ## audit real DICOM files and photographs, print the path of the report
	@test -f $(DEMO)/audit.yaml || $(BIN)/python -m examples.real.make $(DEMO)
	@$(BIN)/lucency audit $(DEMO)/audit.yaml

test: $(VENV)/.installed-test ## the whole test suite
	$(PYTEST) $(TESTS)

test-quick: $(VENV)/.installed-test ## what needs neither Ray nor a whole example
	$(PYTEST) -m "not ray and not whole" $(TESTS)

lint: $(VENV)/.installed-dev ## ruff: rules and format
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(VENV)/.installed-dev ## mypy, strict
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev ## which room may import what
	$(BIN)/lint-imports --no-cache

check: lint types contracts test ## all of the above

format: $(VENV)/.installed-dev ## let ruff repair what it can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

reference: $(VENV)/.installed-dev ## write docs/reference/ from the code
	$(BIN)/python -m docs.make_reference

constraints: $(VENV)/.installed-dev ## pin what the environment holds
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*$$' > constraints.txt

clean: ## remove what the demo, tests and tools left, not the environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c "$(SUPPORTED)" || \
		{ echo "Lucency needs Python 3.11, 3.12 or 3.13: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One install a set of extras: demo is what a user has, test and dev add tools.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(if $(UV),$(UV) pip install --compile-bytecode --python $(BIN)/python,$(BIN)/python -m pip install) \
		--quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
