# make demo   train on the data that comes along, measure, predict
# make test   the tests, two at a time (JOBS=0: one after the other)
# make check  lint, format, types
# make bench  speed and memory of the demo's model on this machine, into docs/speed.md
# make wheel  build, and try what was built in an empty environment
# make audit  licences and known weaknesses of all dependencies; dist/sbom.json lists them
# make oldest / make newest   the tests with the oldest and newest packages allowed
#
# Each makes .venv on first use. TORCH holds what to hand to pip first, e.g. the part after
# "pip install" in the command that pytorch.org prints for a machine without a GPU.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
PYTEST_ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
RUN := runs/brain
# Where an environment forbids bytecode, each process of the tests would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check format bench wheel audit licences oldest newest clean

demo: $(VENV)/installed
	@if [ -e $(RUN)/config.yaml ]; then $(BIN)/segapp train --resume $(RUN); \
	else $(BIN)/segapp train; fi
	@echo
	$(BIN)/segapp evaluate $(RUN) data/brain --out $(RUN)/evaluation
	@echo
	$(BIN)/segapp predict $(RUN) data/brain/test/images data/brain/t1.nii.gz \
		--out $(RUN)/predictions --overlay
	@echo
	@echo "Open next:"
	@echo "  $(RUN)/evaluation/report.html             how good the model is, with pictures"
	@echo "  $(RUN)/report.html                        how training went"
	@echo "  $(RUN)/predictions/t1_overlay.png         the volume's busiest slice"
	@echo "  $(RUN)/evaluation/cases.csv               figures of each test slice"
	@echo "  $(BIN)/segapp app $(RUN)           drop scans into the browser"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_structure.py

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-test
	@test -e $(RUN)/model.safetensors || { echo "make demo first: no model in $(RUN)"; exit 1; }
	@{ echo "# Speed and memory"; echo; echo "Written by \`make bench\`."; \
	for script in "train_speed.py --steps 60" $(patsubst %,"%.py $(RUN)",engines cold_start folder volume); do \
	echo; echo "## benchmarks/$$script"; echo; \
	$(BIN)/python benchmarks/$$script || exit 1; done; } > docs/speed.md.new
	@mv docs/speed.md.new docs/speed.md; cat docs/speed.md

wheel: $(VENV)/installed-release
	rm -rf dist build
	$(BIN)/python -m build
	$(PYTHON) release/wheel.py dist/segapp-*.whl $(TORCH)

audit: $(VENV)/installed-release
	$(BIN)/python release/licences.py --check
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-file dist/sbom.json $(BIN)/python
	$(BIN)/pip install --quiet --upgrade pip # as old as Python itself
	$(BIN)/pip-audit --skip-editable --desc off

licences: $(VENV)/installed-release
	$(BIN)/python release/licences.py > docs/licences.md.new
	@mv docs/licences.md.new docs/licences.md; git diff --stat docs/licences.md

oldest newest: $(VENV)/installed-release
	PATH="$(abspath $(BIN)):$$PATH" release/versions.sh $@ $(PYTEST_ARGS)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segapp needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/pip install $(TORCH))

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -e ".[openvino]"
	@touch $@

# Not compiled: of most packages little is ever imported
$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --no-compile -e ".[$*]"
	@touch $@ $(if $(filter dev,$*),$(VENV)/installed-test) # which is part of it

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info
