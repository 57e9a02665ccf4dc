# Everything below works with Python 3.10 to 3.12, git and make: the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help quickstart lora test proof verify-exports lint lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

quickstart: .venv/installed  ## train a tiny DBRX on the CPU, export it, ask it questions (about 6 minutes)
	$(BIN)/python scripts/quickstart.py

lora: .venv/installed  ## adapters on a tiny imported DBRX, merged and exported (about 2 minutes)
	test -d runs/tiny_base || $(BIN)/python scripts/make_tiny_dbrx.py runs/tiny_base
	$(BIN)/composer -n 2 train.py yamls/finetune/dbrx_tiny_lora.yaml model.pretrained_model_name_or_path=runs/tiny_base
	$(BIN)/python scripts/convert_checkpoint_to_hf.py --composer_path runs/dbrx_tiny_lora/checkpoints --hf_output_path runs/dbrx_tiny_lora/hf

test: .venv/installed .venv/megablocks .venv/peft  ## run the tests (at most 12 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not proof"

proof: .venv/installed  ## run the long proofs (hours; run again, they go on)
	$(BIN)/python -m pytest -m proof --timeout 0

verify-exports: .venv/installed  ## check an export with transformers 4.53, 4.57 and 5.23 (an environment each, 5 minutes)
	$(BIN)/python scripts/verify_exports.py

lint: .venv/installed  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

lock: .venv/bin/uv  ## compile requirements.lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
		--no-emit-index-url --no-emit-find-links --quiet -o requirements.lock

clean:  ## remove the environment, runs and caches
	rm -rf .venv .cache runs build *.egg-info .pytest_cache .ruff_cache train/models/*.so

# uv, because pip alone needs 6 minutes for the lock; pip after all where only pip has been told of the package index.
.venv/bin/uv:
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 13), "Python 3.10 to 3.12 is needed (make PYTHON=python3.11 ...), not " + sys.version.split()[0]'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv

# MegaBlocks' Python files, which run on a CPU through Triton's interpreter: for tests alone.
.venv/megablocks: .venv/installed tests/install_megablocks_on_cpu.py
	$(BIN)/python tests/install_megablocks_on_cpu.py $@
	@touch $@

# PEFT, to load what is exported for it: for tests alone. Among the installed packages Composer would import it.
.venv/peft: .venv/installed
	rm -rf $@
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --target $@ peft==0.21.2 || $(BIN)/python -m pip install --no-deps --target $@ peft==0.21.2
	@touch $@

.venv/installed: .venv/bin/uv requirements.lock pyproject.toml $(wildcard train/models/*.c train/models/*.h)
	$(BIN)/uv pip sync --compile-bytecode --python $(BIN)/python requirements.lock || $(BIN)/python -m pip install -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	@touch $@
