# Everything from a fresh machine with python3, make and a package registry: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

DATA ?= ../shared/data/caltech101_pack
.PHONY: help setup demo tune-demo test test-all test-vllm test-vllm-all serve-vllm test-app test-pages lint docs site release-check test-versions lock clean

help:
	@echo "make setup  - $(VENV) with every extra that the tests need (from requirements.lock)"
	@echo "make demo   - small objects in large pictures: pruned beside unpruned and resized, into runs/demo/; a small vision-language model, into runs/demo-vlm/"
	@echo "make tune-demo DATA=DIR - search a recipe for the embedded model on Caltech-101, into runs/tune-demo/ (about 20 minutes on two free cores)"
	@echo "make test   - the test suite"
	@echo "make test-all - the same in random order, with the full product of methods and families and long fuzzing"
	@echo "make test-app - the web page, clicked through in a headless Chromium (Debian: apt-get install chromium-headless-shell)"
	@echo "make test-pages - the reports, in the same browser"
	@echo "make test-vllm - the vLLM plug-in in $(VENV)-vllm, an environment of its own (6 GB): a server on loopback for each family"
	@echo "make test-vllm-all - the same with the benchmarks of servers, parallel ranks and compilation"
	@echo "make serve-vllm - a tiny random model in a pruned vLLM server (FAMILY, RECIPE, PORT); python3 examples/ask_server.py asks it"
	@echo "make lint   - ruff and mypy"
	@echo "make docs   - regenerate docs/reference/methods.md and docs/reference/reproduce.md"
	@echo "make site   - the documentation as a site in site/ (installs docs/site/requirements.txt)"
	@echo "make release-check - build wheel and sdist, install the wheel elsewhere, try the first commands there"
	@echo "make test-versions - Python 3.10 with the lowest versions allowed, 3.13 with the newest"
	@echo "make lock   - resolve requirements.lock again"

setup: $(STAMP)

# uv installs the lock in a fraction of pip's time; where it cannot reach the registry, pip does it.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e . \
	  || $(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $(STAMP)

demo: setup
	$(BIN)/sparsight compare --data demo:small,n=72 --methods class_attention,col_ln --keep 0.5 --layers 0/3/6 \
	  --recipe similarity:keep=0.15,layers=input --batch-size 2 --seconds 1 --out runs/demo
	$(BIN)/sparsight compare --model demo-vlm --methods random,fastervlm,divprune,agile --tokens 64,16 --limit 16 --out runs/demo-vlm
	@echo "open runs/demo/report.html and runs/demo-vlm/report.html"

# Two workers of one thread each: the second goes on where the first is.
TUNE := $(BIN)/sparsight tune --data $(DATA) --split train --report-split test --limit 404 --report-limit 707 --trials 60 --speedup 2 --out runs/tune-demo \
  --recipe tome:keep=0.7,layers=3/6/9 --recipe compose:score=col_ln,select=diverse,keep=0.7,layers=3/6/9 \
  --recipe compose:score=col_ln,select=diverse,keep=0.5,layers=3/6/9 --recipe random:keep=0.5,layers=3/6/9 --recipe resize:keep=0.473

tune-demo: setup
	mkdir -p runs
	OMP_NUM_THREADS=1 $(TUNE) >runs/tune-demo-second.log 2>&1 & OMP_NUM_THREADS=1 $(TUNE); code=$$?; wait; exit $$code

# One thread for each worker: more would only wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not product"

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --random-order

test-app: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n0 -rs tests/app tests/cli/test_app_verb.py

test-pages: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n0 -rs tests/pages/test_in_browser.py

# vLLM needs other versions than the lock has.
VLLM := $(VENV)-vllm

$(VLLM)/.ready: tests_vllm/requirements.txt tests_vllm/overrides.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VLLM)/bin/uv pip install --quiet --compile-bytecode --python $(VLLM)/bin/python --override tests_vllm/overrides.txt -r tests_vllm/requirements.txt
	$(VLLM)/bin/uv pip install --quiet --python $(VLLM)/bin/python --no-deps -e .
	@touch $@

# A server of its own for each family, one after another.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -q -m "not product" tests_vllm

test-vllm-all: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -q tests_vllm

# A tiny random model in a pruned vLLM server on 127.0.0.1; in another terminal: python3 examples/ask_server.py
FAMILY ?= llava
RECIPE ?= divprune:tokens=5
PORT ?= 8000
TINY ?= runs/tiny-$(FAMILY)

$(TINY)/config.json: | $(VLLM)/.ready
	$(VLLM)/bin/python tests_vllm/checkpoints.py $(FAMILY) $(TINY)

serve-vllm: $(TINY)/config.json
	HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m vllm.entrypoints.openai.api_server --model $(TINY) --served-model-name model \
	  --host 127.0.0.1 --port $(PORT) --dtype float32 --enforce-eager --max-model-len 1024 --kv-cache-memory-bytes 64000000 \
	  --trust-request-mm-kwargs --hf-overrides '{"sparsight": "$(RECIPE)"}'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/sparsight methods --markdown > docs/reference/methods.md
	$(BIN)/sparsight reproduce --markdown > docs/reference/reproduce.md

# PYTHONPATH: notebooks run in a process of their own.
site: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r docs/site/requirements.txt
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR)/src $(BIN)/mkdocs build --quiet
	@echo "open site/index.html, or $(BIN)/python -m http.server -d site"

release-check: setup
	UV=$(BIN)/uv .ci/release-check

test-versions: setup
	UV=$(BIN)/uv .ci/test-versions

lock:
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --extra dev --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --extra docs --no-emit-index-url --no-annotate --no-header \
	  -c requirements.lock pyproject.toml -o docs/site/requirements.txt

clean:
	rm -rf $(VENV) $(VENV)-vllm runs site .pytest_cache .mypy_cache .ruff_cache
