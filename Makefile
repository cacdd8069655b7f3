# Everything starts here: `make report`, `make test`, `make lab`. See README.md for the same without make.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python || echo python3.11)
BIN := .venv/bin
# a folder filled by `make wheels` is used instead of the network
OFFLINE := $(if $(wildcard wheels/*.whl),--no-index --find-links wheels)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(OFFLINE)
LIMIT := OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2
# workers with two threads each would wait for one another on two cores; of four workers two usually wait for a server or a process
ONE := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: report demo test check lab data bench study wheels pictures clean
.DEFAULT_GOAL := report

report: .venv/runtime
	$(LIMIT) $(BIN)/mlops report --all

demo: .venv/runtime
	$(LIMIT) $(BIN)/mlops report credit_risk -p sample 4000 --open

lab: .venv/runtime
	$(BIN)/jupyter lab nbs/start_here.ipynb

test: .venv/dev
	$(ONE) $(BIN)/python -m pytest tests/test_speed.py
	$(ONE) $(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/test_speed.py

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/hadolint deploy/Containerfile
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/*.yaml
	$(BIN)/python -m pytest tests/test_house.py

bench: .venv/dev
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/bench_serve.py
	$(BIN)/python tests/bench_batch.py
	$(BIN)/python tests/bench_drift.py

# proofs that take long; each prints what it found, and fails if that is not what is promised
study: .venv/dev
	$(LIMIT) $(BIN)/python tests/study_fuzz.py
	$(LIMIT) $(BIN)/python tests/study_watching.py
	$(LIMIT) $(BIN)/python tests/study_drift.py
	$(LIMIT) $(BIN)/python tests/study_image.py

data: .venv/runtime
	$(BIN)/python data/build.py

pictures: .venv/runtime
	$(BIN)/mlops pictures

wheels: .venv/python
	$(BIN)/python -m pip wheel --wheel-dir wheels -r requirements-dev.lock $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

clean:
	rm -rf .venv var

# The stamps below make a second run install nothing.
.venv/python:
	@$(PYTHON) -c "import sys; v = sys.version_info; v[:2] == (3, 11) or sys.exit(f'This project needs Python 3.11, and {sys.executable} is {v[0]}.{v[1]}. Install it, or name one: make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv .venv
	@touch $@

.venv/runtime: requirements.lock pyproject.toml | .venv/python
	@echo "Installing about 200 packages into .venv, once; this takes some minutes."
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet torch==2.13.0 --index-url $(TORCH_INDEX))
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements-dev.lock .venv/runtime
	$(PIP) -r requirements-dev.lock
	@touch $@
