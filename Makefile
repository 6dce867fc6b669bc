# One virtual environment, .venv, into which every target installs what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: help demo paths schedules textbook test nightly bench bench-full check clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The sources that an installation depends on; a change of any of them builds again.
SOURCES = $(shell find fastopt src_c -name '*.py' -o -name '*.p[yx][xid]' -o -name '*.[ch]' -o -name '*.def')

$(VENV)/%: pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[$*]'
	touch $@

demo: $(VENV)/demo  ## train a network on real images with every classic optimizer
	$(BIN)/python examples/train_mlp.py

paths: $(VENV)/demo  ## draw the paths that the optimizers take
	$(BIN)/python examples/paths.py

schedules: $(VENV)/demo  ## draw every schedule
	$(BIN)/python examples/schedules.py

TEXTBOOK = $(filter-out %/common.py,$(wildcard examples/textbook/*.py))

textbook: $(VENV)/demo  ## run the textbook's experiments and draw them, in minutes
	set -e; for program in $(TEXTBOOK); do $(BIN)/python $$program; done

test: $(VENV)/test  ## the tests, in minutes
	$(BIN)/pytest -n 2 --dist worksteal tests

nightly:  ## what takes hours: all tests in full, long fuzzing, sanitizers, compilers, emulators; as root on Debian
	.ci/nightly

bench: $(VENV)/bench  ## compare with the libraries that are installed, in minutes: a page in build/bench
	$(BIN)/python bench/report.py

bench-full: $(VENV)/bench-full  ## compare everything with every library, in hours: docs/benchmark.md, README
	$(BIN)/python bench/report.py --full --output docs --readme README.md

check: $(VENV)/dev  ## lint and type-check
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:  ## remove what was built
	rm -rf $(VENV) build dist fastopt/*.c fastopt/*.so *.egg-info
