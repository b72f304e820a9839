# Everything runs in .venv, which the first target that needs it builds. PYTHON=... names the interpreter
# to build it with; ARGS=... passes options on: make serve ARGS="--port 9000", make test ARGS="tests/text -x".
.DEFAULT_GOAL := help
.PHONY: help serve test lint pins bench clean

BIN := .venv/bin
# JAX's CUDA wheels are several GB: only where there is an NVIDIA driver.
CUDA = $(shell (nvidia-smi || test -e /proc/driver/nvidia/version) >/dev/null 2>&1 && echo cuda)

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

serve:  ## serve the demo model, or ARGS=MODEL, on http://127.0.0.1:8000
	@deploy/venv.sh server $(CUDA)
	@$(BIN)/cvllm-jax serve $(ARGS)

test:  ## run all tests
	@deploy/venv.sh server test
	@$(BIN)/python -m pytest $(ARGS)

lint:  ## ruff, and mypy's strict mode on the packages
	@deploy/venv.sh server test
	@$(BIN)/ruff check
	@$(BIN)/mypy

bench:  ## compare with transformers on this machine; needs REFERENCE_PYTHON=... (bench/README.md)
	@deploy/venv.sh server
	@$(BIN)/python -m bench.compare_transformers --reference-python "$(REFERENCE_PYTHON)" $(ARGS)

pins:  ## refresh the pinned versions in deploy/constraints.txt
	@deploy/pins.sh

clean:  ## remove .venv and what tools left
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
