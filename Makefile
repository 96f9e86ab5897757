# One environment in .venv, pinned by constraints.txt. On Linux, PyPI's torch brings CUDA along; for the CPU build of
# PyTorch's own index: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
CONSTRAINTS ?= constraints.txt
PIP = -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
TORCH = torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

ORACLES := transformers gguf litgpt torchtune torchtitan olmo_core fms fairseq2 transformer_lens deepseek_v3 quantized \
	megatron_core megatron_dist mistral_inference mlx gpt_fast nanotron timm open_clip llms_from_scratch
# What runs under generation 4 alone: copies of remote code.
ORACLES_4 := baichuan qwen1
ORIGINALS ?= build/originals
RAW := https://raw.githubusercontent.com
SEED ?= 1

.PHONY: env env-4 demo docs docs-serve test test-all test-routes test-emit coverage mutants campaign test-ecosystem test-originals test-page \
	test-oracles originals check check-4 regen fuzz bench clean

env: .venv/ready
.venv/ready: pyproject.toml constraints.txt
	@echo "[env 1/3] creating .venv"
	$(PYTHON) -m venv .venv
	@echo "[env 2/3] installing torch, the largest download; minutes where it is not cached"
	$(BIN)/python $(PIP) $(TORCH)
	@echo "[env 3/3] installing mapspec, Transformers and the tools of the tests"
	$(BIN)/python $(PIP) -e '.[test]'
	touch $@

# A second environment with the last transformers 4, to load the same folders and to prove the specs there.
env-4: .venv-4/ready
.venv-4/ready: constraints.txt
	$(PYTHON) -m venv .venv-4
	sed 's/^transformers==.*/transformers==4.57.6/; /^huggingface-hub==/d; /^tokenizers==/d' constraints.txt > .venv-4/constraints.txt
	.venv-4/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-4/constraints.txt $(TORCH)
	.venv-4/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-4/constraints.txt -e '.[proof]' accelerate pillow
	touch $@
.venv-4/oracles: .venv-4/ready
	.venv-4/bin/python -m pip install --quiet --disable-pip-version-check --no-deps optimum-habana==1.21.2 modelscope==1.9.5 einops==0.8.2
	touch $@

demo: env
	$(BIN)/python docs/demo.py

# The documentation as a site: build/site/index.html opens without a server and loads nothing from elsewhere.
.venv-docs/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP) -e '.[docs]'
	touch $@
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
docs-serve: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs serve

test: env
	$(BIN)/python -m pytest -n 2

# All cases of the tests that take a part by default: mutants, hostile inputs, variants of rendered models.
test-all: env
	MAPSPEC_ALL=1 $(BIN)/python -m pytest -n 2

# Every pair of shipped specs that meet at a class: one pass with --to against two.
test-routes: env
	MAPSPEC_ALL=1 $(BIN)/python -m pytest -n 2 tests/specs/test_composition.py

# The mapping of every spec in the programs that read it, all examples, against what run writes; and the page about them.
test-emit: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/arrays \
	  mlx==0.32.4 'mlx-cpu==0.32.4; sys_platform == "linux"'
	PYTHONPATH=.venv/arrays MAPSPEC_ALL=1 $(BIN)/python -m pytest tests/emit

# Line and branch coverage of compiler/ by the default tests, child processes included.
coverage: env
	rm -f .coverage*
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

# Random mutants of the modules that decide a result; COUNT and SEED choose them. About half a minute each.
COUNT ?= 200
mutants: env
	$(BIN)/python tests/mutants --count $(COUNT) --seed $(SEED)

# Plausible mistakes in every shipped spec, and what catches each; LOG=FILE to continue a run. COUNT mistakes a spec, 0 for
# all; SPECS="llama qwen3" for some. About a quarter of a second each.
SPECS ?=
campaign: env
	$(BIN)/python tests/campaign --count $(COUNT) --seed $(SEED) $(if $(SPECS),--specs $(SPECS)) $(if $(LOG),--log $(LOG))
campaign: COUNT = 30

# Other projects' converters and models, run side by side with the specs on checkpoints of a seed of their own.
.venv-oracles/ready: tests/recorders/requirements.txt
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check -r tests/recorders/requirements.txt
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check --no-deps litgpt==0.5.13 transformer-lens==2.16.1 fairseq2==0.8.1 mistral-inference==1.6.0 mlx-lm==0.32.2 nanotron==0.4 dacite==1.9.2 llms-from-scratch==1.0.19
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-oracles/torchao-0.13 torchao==0.13.0
	touch $@

.venv-scripts/ready: tests/recorders/requirements-scripts.txt
	$(PYTHON) -m venv .venv-scripts
	.venv-scripts/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	.venv-scripts/bin/python -m pip install --quiet --disable-pip-version-check -r tests/recorders/requirements-scripts.txt
	touch $@

# Models that are files of other people's repositories; ORIGINALS=DIR where they are there already. Without them their
# cases are left out.
originals:
	mkdir -p $(ORIGINALS)/llama2c $(ORIGINALS)/minimind1/model $(ORIGINALS)/nanochat $(ORIGINALS)/deepseek_v3
	for pair in \
	    karpathy/nanochat/92d63d4e8bb4df75c3b71618f31ddde2378b2bcd/nanochat/gpt.py:nanochat/gpt.py \
	    karpathy/nanochat/92d63d4e8bb4df75c3b71618f31ddde2378b2bcd/nanochat/common.py:nanochat/common.py \
	    karpathy/nanochat/92d63d4e8bb4df75c3b71618f31ddde2378b2bcd/nanochat/optim.py:nanochat/optim.py \
	    karpathy/nanochat/92d63d4e8bb4df75c3b71618f31ddde2378b2bcd/nanochat/flash_attention.py:nanochat/flash_attention.py \
	    deepseek-ai/DeepSeek-V3/9b4e9788e4a3a731f7567338ed15d3ec549ce03b/inference/convert.py:deepseek_v3/convert.py \
	    deepseek-ai/DeepSeek-V3/9b4e9788e4a3a731f7567338ed15d3ec549ce03b/inference/model.py:deepseek_v3/model.py \
	    karpathy/llama2.c/c05b45a5917130e090263fc222573d5251cbe0af/model.py:llama2c/model.py \
	    jingyaogong/minimind/58e3af0359a187bdf2d91fa737b8d1edde9a21a7/model/model.py:minimind1/model/model.py \
	    jingyaogong/minimind/58e3af0359a187bdf2d91fa737b8d1edde9a21a7/model/LMConfig.py:minimind1/model/LMConfig.py; do \
	  test -e $(ORIGINALS)/$${pair#*:} || curl -fsSL $(RAW)/$${pair%%:*} -o $(ORIGINALS)/$${pair#*:} \
	    || echo "left out, since it could not be fetched: $${pair%%:*}"; done

test-oracles: originals env .venv-oracles/ready .venv-scripts/ready .venv-4/oracles
	rm -rf build/oracles
	for name in $(ORACLES); do .venv-oracles/bin/python tests/recorders/run_$$name.py build/oracles --seed $(SEED) || exit 1; done
	test ! -e $(ORIGINALS)/minimind1/model/LMConfig.py || test ! -e $(ORIGINALS)/llama2c/model.py || \
	  .venv-oracles/bin/python tests/recorders/run_originals.py build/oracles --seed $(SEED) --originals $(ORIGINALS)
	test ! -e $(ORIGINALS)/nanochat/gpt.py || .venv-oracles/bin/python tests/recorders/run_nanochat.py build/oracles --seed $(SEED) --originals $(ORIGINALS)
	test ! -e $(ORIGINALS)/deepseek_v3/model.py || .venv-oracles/bin/python tests/recorders/run_deepseek_shards.py build/oracles --seed $(SEED) --originals $(ORIGINALS)
	for name in $(ORACLES_4); do .venv-4/bin/python tests/recorders/run_$$name.py build/oracles --seed $(SEED) || exit 1; done
	.venv-scripts/bin/python tests/recorders/run_transformers_scripts.py build/oracles --seed $(SEED)
	MAPSPEC_ORACLES=build/oracles $(BIN)/python -m pytest tests/specs/test_oracles.py tests/specs/test_mutations.py

# Other programs on a converted folder; what they need goes beside the packages of .venv, not among them.
PROGRAMS := torchao==0.18.0 ctranslate2==4.8.5 gguf==0.19.0 trl==1.16.0 \
	datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 python-dateutil==4.0.0 six==1.17.0 dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0
test-ecosystem: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/programs $(PROGRAMS)
	PYTHONPATH=.venv/programs $(BIN)/python -m pytest tests/ecosystem/programs.py

# The page that `plan --html` writes, in a Chromium of this machine; axe-core needs npm, and its tests are skipped without.
AXE := build/page/node_modules/axe-core/axe.min.js
test-page: env
	test -e $(AXE) || npm install --silent --no-save --prefix build/page axe-core@4.14.1 || true
	AXE=$$(test ! -e $(AXE) || echo $(AXE)) $(BIN)/python -m pytest -rs tests/plan_report/page_in_browser.py

# What --reverse and --to write, in the programs that own those layouts.
test-originals: env .venv-oracles/ready
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549 openai-whisper==20250625
	MAPSPEC_ORIGINALS=$(CURDIR)/.venv-oracles/bin/python $(BIN)/python -m pytest tests/ecosystem/sources.py

# The specs whose mappings are kept under generated/emit.
EMITTED := torchtitan_llama torchtitan_qwen3_moe

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/compile --check --no-proof specs/*.yaml
	$(BIN)/compile --check --no-proof specs/litgpt_llama.yaml --to meta_llama
	$(BIN)/compile --check --no-proof specs/qwen3.yaml --to litgpt_qwen3
	$(BIN)/compile --check --no-proof --emit transformers $(EMITTED)
	$(BIN)/compile --check --no-proof --emit vllm torchtitan_qwen3
	$(BIN)/compile --check --no-proof --emit mlx torchtitan_llama

# Every spec against the classes of the last transformers 4; about five minutes.
check-4: env-4
	.venv-4/bin/compile --check specs/*.yaml

regen: env
	$(BIN)/ruff format --quiet compiler tests benchmarks docs
	$(BIN)/compile specs/*.yaml
	$(BIN)/compile --no-proof specs/litgpt_llama.yaml --to meta_llama
	$(BIN)/compile --no-proof specs/qwen3.yaml --to litgpt_qwen3
	$(BIN)/compile --emit transformers $(EMITTED)
	$(BIN)/compile --emit vllm torchtitan_qwen3
	$(BIN)/compile --emit mlx torchtitan_llama
	$(BIN)/python -m compiler.target.record_classes
	$(BIN)/python -m compiler.proof.record_labels
	$(BIN)/python tests/cli/test_errors.py
	$(BIN)/python docs/make_specs.py
	$(BIN)/python docs/make_emit.py
	$(BIN)/python docs/make_ops.py
	$(BIN)/python docs/make_op_pictures.py
	$(BIN)/python docs/make_blocks.py
	$(BIN)/python docs/make_errors.py
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_gallery.py
	$(BIN)/python docs/make_pictures.py

# About twenty minutes: what docs/trust.md reports.
fuzz: env
	$(BIN)/python tests/fuzz

bench: env
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-4 .venv-docs .venv-scripts .venv-oracles out build *.egg-info
