# Every target sets up what it needs in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# A process a core, each with one thread; a file's tests stay together, as they share what they train.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# The longest first, so that all processes end at about the same time; the others follow.
SLOW := tests/reports/test_gate.py tests/end_to_end/test_true_layouts.py tests/attacks/test_issba.py \
	tests/end_to_end/test_vit_b_32.py tests/defenses/test_unchanged.py tests/matrix/test_workers.py

# Of this project's own regression gate: docs/regression_gate.md.
BASELINE := docs/results/baseline.json

.PHONY: bench results gate baseline test slow speed check smoke clean

bench: $(READY)
	$(BIN)/bench run --preset mini --out results

# Every table and figure of the paper, for docs/results: hours. The same command goes on after an interruption.
results: $(READY)
	$(BIN)/bench paper rvpt --out results/paper
	cp results/paper/table.md results/paper/results.csv docs/results/
	cp results/paper/tables/*.md results/paper/tables/*.csv docs/results/tables/
	cp results/paper/figures/*.png results/paper/figures/*.csv docs/results/figures/

gate: $(READY)
	$(BIN)/bench run --preset gate --out results/gate
	$(BIN)/bench check results/gate --baseline $(BASELINE) --explain

baseline: $(READY)
	$(BIN)/bench run --preset gate --out results/gate
	$(BIN)/bench baseline results/gate --reruns 5 --out $(BASELINE)

smoke: $(READY)
	$(BIN)/bench run --preset smoke --out results/smoke

test: $(READY)
	$(PYTEST)

speed: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

slow: $(READY)
	$(PYTEST) -m slow --no-loadscope-reorder $(SLOW) $$(grep -rl "mark\.slow" tests --include="*.py")

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
