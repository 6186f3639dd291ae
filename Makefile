# Two commands for a stranger: `make demo` and `make test`. Both set up .venv first; a second time that costs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VIDEO ?=
Q ?=
export VIDEO Q

.PHONY: setup demo test test-slow test-ray check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; run again with PYTHON=python3.11 (or newer)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# `make demo` asks a generated ten-minute video; `make demo VIDEO=path Q="question"` asks yours.
demo: $(STAMP)
	@if [ -n "$$VIDEO" ]; then $(BIN)/longtake ask "$$VIDEO" "$$Q"; else $(BIN)/python examples/demo.py; fi

# Tests run in several processes, those of one file in one, which share what was made for them.
JOBS ?= 2
TEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test: $(STAMP)
	$(TEST)

test-slow: $(STAMP)
	$(TEST) -m slow

# Ray is large and optional, so it is installed only when its tests are asked for.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	$(BIN)/python -m pytest -q -m slow tests/test_prune_ray.py tests/test_synth_ray.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist
