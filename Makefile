# Everything here runs in the checkout's own environment, .venv, which is made on first use and brought
# up to date when setup.cfg or constraints.txt changes. It needs Python 3.11 or newer with venv, and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= out
# Tests see no hub and no display. They run in JOBS processes; tests/conftest.py gives each one thread.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 MPLBACKEND=Agg TOKENIZERS_PARALLELISM=false
JOBS ?= logical
PARALLEL := --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal

# What touches diffusers from the inside.
INSIDE := tests/guidance tests/families tests/pipelines tests/embedded/test_shipped.py \
          tests/loras/weights/test_files.py

.PHONY: help run demo test test-oldest test-slow lint types wheel check clean
help: ## list what there is
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/made:
	@echo "==> making the environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dit-heads needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run-ready: $(VENV)/made setup.cfg pyproject.toml constraints.txt
	@echo "==> installing dit-heads into $(VENV) (the first time this takes minutes: it brings torch)"
	@$(PIP) install --quiet --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/demo-ready: $(VENV)/run-ready
	@echo "==> installing what the demo needs"
	@$(PIP) install --quiet --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/dev-ready: $(VENV)/run-ready
	@echo "==> installing what tests, lint and types need"
	@$(PIP) install --quiet --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/oldest-ready: $(VENV)/dev-ready tests/oldest.txt
	@echo "==> installing the oldest diffusers that setup.cfg allows, beside the other one"
	@rm -rf $(VENV)/oldest
	@$(PIP) install --quiet --quiet --no-deps --target $(VENV)/oldest --requirement tests/oldest.txt
	@touch $@

run: $(VENV)/run-ready ## the showcase: one sheet of unguided and guided pictures
	@echo "==> dit-heads showcase: the same prompts and seeds, unguided and guided, side by side"
	@$(BIN)/dit-heads showcase --out $(OUT)/showcase.png

demo: $(VENV)/demo-ready ## the demo: a page in the browser, offline
	@echo "==> dit-heads demo"
	@HF_HUB_OFFLINE=1 $(BIN)/dit-heads demo

test: $(VENV)/dev-ready ## the fast tests, README's code blocks among them
	@echo "==> fast tests"
	@$(OFFLINE) $(BIN)/python -m pytest -m 'not slow' $(PARALLEL)

test-oldest: $(VENV)/oldest-ready ## the tests of guidance on the oldest diffusers (constraints.txt has the newest)
	@echo "==> tests of guidance on the oldest diffusers"
	@$(OFFLINE) PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest -m 'not slow' $(PARALLEL) $(INSIDE)

test-slow: $(VENV)/dev-ready ## the tests that take longer
	@echo "==> slow tests"
	@$(OFFLINE) $(BIN)/python -m pytest -m slow

lint: $(VENV)/dev-ready ## ruff: style and format of imports
	@echo "==> ruff"
	@$(BIN)/ruff check .

types: $(VENV)/dev-ready ## basedpyright
	@echo "==> basedpyright"
	@rm -rf .types && mkdir -p .types/dit_heads && touch .types/dit_heads/__init__.py
	@for part in pipelines loras demo; do ln -s ../../$$part .types/dit_heads/$$part; done
	@$(BIN)/basedpyright

wheel: $(VENV)/dev-ready ## build the wheel, install it into a fresh environment, draw the showcase there
	@bash tests/install_wheel.sh $(PYTHON)

check: lint types test test-oldest wheel ## all that a change must pass (.ci/run)

clean: ## remove the environment and what was built
	rm -rf $(VENV) .types build dist *.egg-info out
