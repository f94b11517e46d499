# make demo: set up and run the main job end to end.  make test: lint and all tests.
# make test-real: the tests on SmolLM2, which is fetched.
# make test-clients: the server with clients of others, which are installed; the page's browser is a Chromium on PATH, such as
# Debian's chromium-headless-shell.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-real test-clients clean

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

test-clients: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[clients]"
	$(BIN)/pytest -rs tests/runtime/serving

clean:
	rm -rf $(VENV) demo-bundle demo-model build *.egg-info
