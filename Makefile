# Each target makes its own virtual environment on first use.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test slow gpu lint docs bench clean

demo: $(STAMP)
	$(VENV)/bin/clusterprune demo

# One worker per core; each computes in one thread.
test: $(STAMP)
	$(PYTHON) -m pytest --numprocesses auto --dist worksteal

# What takes minutes, and the laws on four times as many examples.
slow: $(STAMP)
	$(PYTHON) -m pytest -m "slow or hypothesis"

# Every public call and every command on a GPU, compared with the CPU. With PYTHON=python3 it runs what is installed.
gpu: $(if $(filter $(VENV)/%,$(PYTHON)),$(STAMP))
	$(PYTHON) benchmarks/gpu_check.py $(GPU)

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

bench: $(STAMP)
	$(PYTHON) -m pip install --quiet --editable ".[bench]"
	$(PYTHON) benchmarks/trace_speed.py

$(STAMP): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build .pytest_cache .ruff_cache .hypothesis
