# The targets require only Python 3.11 to 3.13, git and make. Everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# .venv-classic has torch 2.7.0, the version that the metadata of MegaBlocks 0.10.0 requires.
ENVIRONMENTS := .venv .venv-classic
COMPILE := --extra dev --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --quiet
CORE := $(addprefix tests/,distributed/test_step.py distributed/test_torch_compat.py export/test_export_whole.py export/test_verify.py \
	models/test_attention.py models/test_experts.py models/test_parity.py project/test_security.py run/test_fit.py run/test_resume.py \
	sources/test_hub.py tokenization/test_rendering.py tokenization/test_tokenizer.py)
MINUTE := $(addprefix tests/,config examples loading mixing models optim planning)
FAST := not proof and not ranks and not subprocess and not slow

# Number of pytest-xdist workers. Each worker uses about one core and 2 GB of memory. The tests of a file run in order
# on one worker.
WORKERS ?= 2
XDIST := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

SERVE := openai==2.16.0 distro==1.9.0 jiter==0.12.0 sniffio==1.3.1

.PHONY: help install quickstart lora test test-minute test-fast test-classic proof verify-exports gpu-gate docs lint lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

install: .venv/installed  ## install everything into .venv

quickstart: .venv/installed  ## train a tiny DBRX on the CPU, export the model, and test the export (about 6 minutes)
	$(BIN)/python scripts/quickstart.py device=cpu

lora: .venv/installed  ## train adapters on a tiny imported DBRX on the CPU, merge and export them (about 2 minutes)
	test -d runs/tiny_base || $(BIN)/python scripts/make_tiny_dbrx.py runs/tiny_base
	$(BIN)/composer -n 2 train.py yamls/finetune/dbrx_tiny_lora.yaml device=cpu model.pretrained_model_name_or_path=runs/tiny_base
	$(BIN)/python scripts/convert_checkpoint_to_hf.py --composer_path runs/dbrx_tiny_lora/checkpoints --hf_output_path runs/dbrx_tiny_lora/hf

test: .venv/installed .venv/megablocks .venv/peft .venv/serve  ## run the tests (about 9 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not proof" $(XDIST)

test-minute: .venv/installed  ## run the fast tests of the model, the data order, the config and the planner (1 minute on 2 cores)
	$(BIN)/python -m pytest -m "$(FAST)" $(XDIST) $(MINUTE)

test-fast: .venv/installed  ## run only the fast tests, which start no ranks or subprocesses (1.5 minutes on 2 cores)
	$(BIN)/python -m pytest -m "$(FAST)" $(XDIST)

test-classic: .venv-classic/installed .venv-classic/megablocks  ## run the core tests on torch 2.7 and transformers 4 (2 minutes)
	.venv-classic/bin/python -m pytest -m "not proof" $(XDIST) $(CORE)

proof: .venv/installed  ## run the long proofs (several hours; run the command again to resume interrupted proofs)
	$(BIN)/python -m pytest -m proof --timeout 0

verify-exports: .venv/installed  ## check an export with transformers 4.53, 4.57, the locked and the newest version (5 minutes)
	$(BIN)/python scripts/dev/verify_exports.py

gpu-gate: .venv/installed .venv/megablocks  ## compile all Triton kernels for A100, H100 and B200, without a GPU (15 seconds)
	$(BIN)/python scripts/dev/gpu_gate.py

docs: .venv/installed  ## build the documentation as a website in build/site (5 seconds)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: .venv/installed  ## run ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

lock: .venv/bin/uv  ## update requirements.lock and requirements-classic.lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml $(COMPILE) -o requirements.lock
	$(BIN)/uv pip compile --no-config pyproject.toml requirements-classic.in $(COMPILE) -o requirements-classic.lock

clean:  ## remove the environments and caches, but not the runs
	rm -rf .venv .venv-classic .cache/dropless build *.egg-info .pytest_cache .ruff_cache

# numpy 2.0, the newest version that MegaBlocks' metadata allows, has no wheels for Python 3.13.
.venv/%: NEWEST := 13
.venv-classic/%: NEWEST := 12
CHECK_PYTHON = 'import sys; assert (3, 11) <= sys.version_info < (3, $(NEWEST) + 1), "this environment needs Python 3.11 to 3.$(NEWEST) (rm -rf $*; make PYTHON=python3.12 ...), not " + sys.version.split()[0]'

# uv is used because pip takes 6 minutes to install the packages of the lock file. pip is the fallback if only pip is
# configured for the package index.
$(ENVIRONMENTS:%=%/bin/uv): %/bin/uv:
	$(PYTHON) -c $(CHECK_PYTHON)
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet uv

# With --no-config and --no-deps, the packages of the lock file are installed without checking their metadata.
.venv/installed: LOCK := requirements.lock
.venv-classic/installed: LOCK := requirements-classic.lock
.venv-classic/installed: CONFIG := --no-config
.venv/installed: requirements.lock
.venv-classic/installed: requirements-classic.lock
$(ENVIRONMENTS:%=%/installed): %/installed: %/bin/uv pyproject.toml
	$*/bin/python -c $(CHECK_PYTHON)
ifdef TORCH_BACKEND
	$*/bin/uv pip install --compile-bytecode --python $*/bin/python --torch-backend $(TORCH_BACKEND) --constraint $(LOCK) $(CONFIG) --editable '.[dev]'
else
	$*/bin/uv pip sync --no-config --compile-bytecode --python $*/bin/python $(LOCK) || $*/bin/python -m pip install --no-deps -r $(LOCK)
endif
	$*/bin/uv pip install --python $*/bin/python --no-deps --editable .
	@touch $@

# MegaBlocks' Python files, only for tests. They run on a CPU in Triton's interpreter.
$(ENVIRONMENTS:%=%/megablocks): %/megablocks: %/installed tests/helpers/install_megablocks_on_cpu.py
	$*/bin/python tests/helpers/install_megablocks_on_cpu.py $@
	@touch $@

# Additional packages for `transformers serve`, which is used by the example in docs/examples and by the test of this
# example.
.venv/serve: .venv/installed
	rm -rf $@
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --target $@ $(SERVE) || $(BIN)/python -m pip install --no-deps --target $@ $(SERVE)
	@touch $@

# PEFT, which loads exported adapters in tests. It is not installed in .venv itself, because Composer would import it.
.venv/peft: .venv/installed
	rm -rf $@
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --target $@ peft==0.21.2 || $(BIN)/python -m pip install --no-deps --target $@ peft==0.21.2
	@touch $@
