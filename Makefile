# Everything a newcomer needs: `make demo` and `make test` on a fresh machine with Python 3.11.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
BUNDLE ?= build/gemma4-tiny-raspberry-pi

.PHONY: demo test test-android test-pi check architecture format bench slow clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/gemma-export --target raspberry-pi --size tiny --output $(BUNDLE) --overwrite
	$(BIN)/gemma-run check $(BUNDLE)
	$(BIN)/gemma-run generate $(BUNDLE) --prompt 'Explain argparse.' --max-new-tokens 96
	$(BIN)/gemma-run generate $(BUNDLE) --prompt 'Explain argparse.' --max-new-tokens 96 --temperature 0.8 --seed 8

# Two workers, one thread each: OpenMP's threads wait for each other busily.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --durations=10 --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The app's loop on the JVM and an APK from it, with Debian's packages; see android_demo/tools.sh.
test-android:
	./android_demo/test.sh

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

architecture: $(VENV)/installed
	$(BIN)/pytest -q tests/test_architecture.py

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

slow: $(VENV)/installed
	$(BIN)/pytest -q -m slow

# The same tokens on a Raspberry Pi's emulated cores; needs root and the packages in .ci/run.
test-pi: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -rs --durations=5 -m pi --numprocesses 2 tests/pi

bench: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks.run_all

clean:
	rm -rf $(VENV) build
