# Every target sets up what it needs in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: bench test slow speed check smoke clean

bench: $(READY)
	$(BIN)/bench run --preset mini --out results

smoke: $(READY)
	$(BIN)/bench run --preset smoke --out results/smoke

test: $(READY)
	$(BIN)/python -m pytest

speed: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(READY)

clean:
	rm -rf .venv build *.egg-info
