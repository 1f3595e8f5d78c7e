# Two commands a newcomer needs: `make quickstart` and `make test`. Everything else is for those who stay.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SIZES  := 0.2m 0.9m 3m

.PHONY: install quickstart test test-slow lint bench-cpu clean

install: $(VENV)/.installed

# torch is installed first and pinned, so that nothing that depends on it can choose another build.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/emergence-train prepare configs/quickstart.yaml
	for size in $(SIZES); do \
	  $(BIN)/emergence-train train configs/quickstart.yaml name=quickstart-$$size model.preset=tiny-$$size || exit 1; \
	done
	$(BIN)/emergence-train report $(SIZES:%=runs/quickstart-%) --out runs/quickstart-report

test: install
	$(BIN)/python -m pytest -q -m "not slow and not gpu" tests

test-slow: install
	$(BIN)/python -m pytest -q -m "slow and not gpu" tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --diff . || true

bench-cpu: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/cpu_training.py

clean:
	rm -rf $(VENV) build dist *.egg-info
