# make demo | test | check | soak | chaos | rollout | up BUCKET=folder | clean
#      bench-encoder | bench-worker | bench-backlog | bench-reconcile | bench-train

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check format soak chaos rollout bench-encoder bench-worker bench-backlog bench-reconcile bench-train up clean setup constraints

setup: $(READY)

# uv is used from a boot environment of its own, because a system Python may refuse pip.
$(READY): pyproject.toml constraints.txt
	@command -v uv >/dev/null || test -x .boot/bin/uv || \
		{ $(PYTHON) -m venv .boot && .boot/bin/pip install --quiet uv; }
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV)
	@echo "installing dependencies into $(VENV) (once; PyTorch is some gigabytes)"
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet \
		--constraints constraints.txt --editable '.[local,train,dev]'
	@touch $@

demo: $(READY)
	@exec $(BIN)/python examples/demo.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-encoder: $(READY)
	$(BIN)/python tests/bench_encoder.py

bench-worker: $(READY)
	$(BIN)/python tests/bench_worker.py

bench-backlog: $(READY)
	$(BIN)/python tests/bench_backlog.py

bench-reconcile: $(READY)
	$(BIN)/python tests/bench_reconcile.py

soak: $(READY)
	$(BIN)/python tests/soak.py

chaos: $(READY)
	$(BIN)/python tests/chaos.py

rollout: $(READY)
	$(BIN)/python tests/rollout_proof.py

bench-train: $(READY)
	$(BIN)/python tests/bench_train.py

up: $(READY)
	@exec $(BIN)/audiofuse up --bucket $(BUCKET)

# After changing dependencies: resolve anew and pin names and versions, never addresses.
constraints:
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet --upgrade \
		--editable '.[local,train,dev]'
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) .boot .demo .pytest_cache .mypy_cache .ruff_cache
