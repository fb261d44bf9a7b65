# make demo | test | check | soak | chaos | rollout | proof-learning | drill | proof-compose | paper | dashboards | up BUCKET=folder | clean
#      bench-encoder | bench-query | bench-federation | bench-limited | bench-page | bench-worker | bench-gpu | bench-backlog | bench-recordings
#      bench-moments | bench-reconcile | bench-relevance | bench-train | bench-improve | audit | sbom | compose-env | docs | pictures

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check format soak chaos rollout proof-learning drill proof-compose paper dashboards bench-encoder bench-query bench-federation bench-limited bench-page bench-worker bench-gpu bench-backlog bench-recordings bench-moments bench-reconcile bench-relevance bench-train bench-improve audit sbom compose-env docs pictures up clean setup constraints

setup: $(READY)

# Compiled here, once: where PYTHONDONTWRITEBYTECODE is set each process would compile PyTorch anew,
# which doubles the time of every start.
# uv is used from a boot environment of its own, because a system Python may refuse pip.
$(READY): pyproject.toml constraints.txt
	@command -v uv >/dev/null || test -x .boot/bin/uv || \
		{ $(PYTHON) -m venv .boot && .boot/bin/pip install --quiet uv; }
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV)
	@echo "installing dependencies into $(VENV) (once; PyTorch is some gigabytes)"
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet \
		--compile-bytecode --constraints constraints.txt --editable '.[local,train,dev]'
	@touch $@

demo: $(READY)
	@exec $(BIN)/python examples/demo.py

# Three at once: tests of processes wait more than they compute. In the order of the folders: by the
# number of their tests, the files of few and long ones would come last, and one by one.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-encoder: $(READY)
	$(BIN)/python tests/benchmarks/encoder.py

bench-query: $(READY)
	$(BIN)/python tests/benchmarks/query.py

# What `make bench-federation ARGS=--help` says.
bench-federation: $(READY)
	PYTHONPATH=tests/benchmarks $(BIN)/python tests/benchmarks/scale/federation.py $(ARGS)

# What `make bench-limited ARGS=--help` says.
bench-limited: $(READY)
	PYTHONPATH=tests/benchmarks $(BIN)/python tests/benchmarks/scale/limited.py $(ARGS)

bench-page: $(READY)
	$(BIN)/python tests/benchmarks/page.py $(ARGS)

# What `make bench-worker ARGS=--help` says.
bench-worker: $(READY)
	$(BIN)/python tests/benchmarks/worker.py $(ARGS)

# Needs a GPU; `make bench-gpu ARGS='--device cpu --quick'` shows that it works. Also ARGS=--help.
bench-gpu: $(READY)
	PYTHONPATH=tests/benchmarks:tests/support $(BIN)/python tests/benchmarks/gpu $(ARGS)

# What `make bench-recordings ARGS=--help` says.
bench-recordings: $(READY)
	$(BIN)/python tests/benchmarks/moments/indexing.py $(ARGS)

bench-moments: $(READY)
	PYTHONPATH=tests/benchmarks $(BIN)/python tests/benchmarks/moments/searching.py $(ARGS)

bench-backlog: $(READY)
	$(BIN)/python tests/benchmarks/backlog.py

# The sounds and sentences of ARGS=MANIFEST, by default ../shared/data/human.jsonl.
bench-relevance: $(READY)
	$(BIN)/python tests/benchmarks/quality/relevance.py $(ARGS)

bench-reconcile: $(READY)
	$(BIN)/python tests/benchmarks/reconcile.py $(ARGS)

soak: $(READY)
	$(BIN)/python tests/proofs/soak.py

chaos: $(READY)
	$(BIN)/python tests/proofs/chaos.py

rollout: $(READY)
	$(BIN)/python tests/proofs/rollout.py

proof-learning: $(READY)
	$(BIN)/python tests/proofs/learning.py $(ARGS)

drill: $(READY)
	$(BIN)/python tests/proofs/drill.py

# One thread: on towers this tiny two only wait for each other.
paper: $(READY)
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/paper.py

# Docker's engine, and what `make proof-compose ARGS=--help` says.
proof-compose: $(READY)
	$(BIN)/python tests/proofs/stack/prove.py $(ARGS)

dashboards: $(READY)
	$(BIN)/python deploy/grafana/dashboards.py
	$(BIN)/python deploy/kubernetes/monitoring/rules.py

bench-train: $(READY)
	$(BIN)/python tests/benchmarks/train.py

# Needs ../shared/data, and AUDIOFUSE_PRETRAINED with the checkpoint and the classes' names.
bench-improve: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/quality/improve.py $(ARGS)

up: $(READY)
	@exec $(BIN)/audiofuse up --bucket $(BUCKET)

# After changing dependencies: resolve anew and pin names and versions, never addresses.
constraints:
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet --upgrade \
		--editable '.[local,train,dev]'
	@PATH="$$PATH:$(CURDIR)/.boot/bin"; VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip freeze --exclude-editable > constraints.txt

# The tools are fetched when they are used, so that they are no dependency themselves.
audit: $(READY)
	@PATH="$$PATH:$(CURDIR)/.boot/bin" sh deploy/audit.sh $(BIN)/python

sbom: $(READY)
	@PATH="$$PATH:$(CURDIR)/.boot/bin" uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py \
		environment --output-reproducible --pyproject pyproject.toml --output-file sbom.json $(BIN)/python
	@echo "wrote sbom.json"

# The list of files in docs/internals.md, from what the files say about themselves.
docs: $(READY)
	@$(BIN)/python docs/files.py

# The pictures in README.md, from the demo's sounds; needs chromium and prometheus.
pictures: $(READY)
	@$(BIN)/python docs/pictures.py

# Passwords and CPU limits for docker-compose.yml, in .env.
compose-env:
	@sh deploy/compose-env.sh

clean:
	rm -rf $(VENV) .boot .demo .pytest_cache .mypy_cache .ruff_cache
