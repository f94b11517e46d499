# make demo: set up and run the main job end to end.  make test: lint and all tests.
# make test-real: the tests on SmolLM2, which is fetched.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-real clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet --editable ".[cpu,export,profile,tensorrt-rtx,serve,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/firp demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-real: $(VENV)/installed
	FIRP_REAL_MODEL=$$($(BIN)/python -m firp.calib.commands.fetch) $(BIN)/pytest -m real

clean:
	rm -rf $(VENV) demo-bundle demo-model build *.egg-info
