# `make demo`, `make test` (minutes), `make test-slow` (storms of kills, every attack, whole benchmarks; 25 minutes).
# Each creates .venv from constraints.txt when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint clean
demo: $(STAMP)
	$(BIN)/retort demo

# Three processes on two cores: many tests wait for services that they have started.
test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

# One process: these tests fill the machine by themselves, and many kill what they have started.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu" $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The trackers, which bring a GB, are left out: .ci/run gives them a Python of their own, for the slow tests.
# pip first, for that of Python 3.11 knows no digests of constraints; setuptools, which builds Retort, is among torch's
# requirements.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Retort needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@sed -n '/^pip==/,/[^\\]$$/p' constraints.txt > $(VENV)/pip.txt
	$(PIP) --no-deps --require-hashes --requirement $(VENV)/pip.txt
	@$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *(r for n, e in p['optional-dependencies'].items() if n not in ('mlflow', 'wandb', 'trackio') for r in e if not r.startswith('retort[')), sep='\n')" > $(VENV)/requirements.txt
	$(PIP) --require-hashes --constraint constraints.txt --requirement $(VENV)/requirements.txt
	$(PIP) --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
