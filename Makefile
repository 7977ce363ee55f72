# make demo   train on the data that comes along, measure, predict
# make test   the tests          make check   lint, format, types
#
# Each makes .venv on first use. TORCH holds what to hand to pip first, e.g. the part after
# "pip install" in the command that pytorch.org prints for a machine without a GPU.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
PYTEST_ARGS ?=
BIN := $(VENV)/bin
RUN := runs/brain

.PHONY: demo test check format clean

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
	@echo "  $(RUN)/curves.png                         how training went"
	@echo "  $(RUN)/overlays/                          validation: image, mask, result"
	@echo "  $(RUN)/predictions/t1_overlay.png         the volume's busiest slice"
	@echo "  $(RUN)/evaluation/cases.csv               figures of each test slice"
	@echo "  $(BIN)/segapp app $(RUN)           drop scans into the browser"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_structure.py

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segapp needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/pip install $(TORCH))

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -e ".[openvino]"
	@touch $@

$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -e ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
