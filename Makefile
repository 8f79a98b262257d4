# make run         the whole pipeline: data, three fine-tuned models, their comparison, merge proof, registry
# make test        the fast tests            make test-all   every test, with the slow ones
# make serve       the HTTP server           make bench      side-by-side measurements
# make schedule    the nightly and weekly runs of infra/prefect.yaml
# make stack       PostgreSQL, Prefect, MLflow, worker and model server on loopback       make stack-down   ends them
# make mutation    planted faults in the mathematics and the loops, and how many the tests find (hours)
# make deps        the code deps of dvc.yaml, from the imports
# make lint        ruff                      make system     PostgreSQL and Chromium for a few end-to-end tests (apt, root)
# Each target makes .venv first if it is missing or older than what it is made from. PYTHON=python3.12 picks another Python,
# EXTRAS=s3,stack (test) what is installed besides the main packages.
PYTHON ?= python3
EXTRAS ?= test
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# No telemetry, from any of the libraries.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := run
.PHONY: run test test-all serve schedule stack stack-down bench system lint deps mutation setup

setup: .venv/.ready

# The stamp holds the folder it was made in: a moved clone has scripts that point to the old place, so it is made anew.
ifneq ($(wildcard .venv/.ready),)
ifneq ($(shell cat .venv/.ready),$(CURDIR))
$(shell rm -rf .venv)
endif
endif

# hashes.txt first: what is installed already, by its hash, is not taken anew. Then torch, by its version, before some
# other package admits a larger build of it.
.venv/.ready: pyproject.toml constraints.txt hashes.txt assets.txt sdists.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null || \
	  { echo "error: Ajuste needs Python 3.11 or 3.12, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -1); name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: '$(PYTHON)' cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@echo "Setting up .venv (once; about 3 GB, some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r hashes.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r assets.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --no-binary llamafactory,vadersentiment -d .venv/sdists -r sdists.txt
	@cd .venv/sdists && for archive in *.tar.gz; do ../bin/python -m tarfile -e "$$archive" . || exit 1; done
	@echo '$(CURDIR)' > $@

run: .venv/.ready
	@test -d data || ajuste data pull
	ajuste run

# Two processes, a file at a time in each: tests compute in one thread, and many wait for servers. In the order of
# tests/conftest.py: the longest file first.
test: .venv/.ready
	python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-all: .venv/.ready
	python -m pytest

serve: .venv/.ready
	ajuste serve

# Needs a Prefect server: `ajuste ui` in another terminal, which writes its address and login into .ui/env, or
# PREFECT_API_URL (and PREFECT_API_AUTH_STRING) of one that runs elsewhere.
schedule: .venv/.ready
	@env="$${AJUSTE_HOME:-.}/.ui/env"; if [ -z "$$PREFECT_API_URL" ] && [ -f "$$env" ]; then . "$$env"; fi; \
	  export PREFECT_API_URL="$${PREFECT_API_URL:-http://127.0.0.1:4200/api}"; \
	  ajuste deploy && exec prefect worker start --pool ajuste

# PostgreSQL, Prefect and MLflow on it, a worker, the model server: docs/stack.md. What runs already goes on.
stack: .venv/.ready
	python -m infra.stack up

stack-down: .venv/.ready
	python -m infra.stack down

# All of benchmarks/ but mutation.py, hours on a quiet machine; ONLY="startup data" some. JSON in reports/bench/.
bench: .venv/.ready
	@python -m benchmarks.suite $(if $(ONLY),--only $(ONLY))

# The code deps of every dvc.yaml, from the imports.
deps: .venv/.ready
	python -m ajuste.tracking.project.deps

# In an environment of its own beside .venv's packages, since mutmut brings a user interface that nothing else needs.
mutation: .venv/.ready
	@test -x .mutation/venv/bin/mutmut || { $(PYTHON) -m venv .mutation/venv && \
	  python -c 'import site; print(site.getsitepackages()[0])' > "$$(.mutation/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth" && \
	  .mutation/venv/bin/python -m pip install --quiet -c constraints.txt "$$(python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["mutation"])')"; }
	.mutation/venv/bin/python -m benchmarks.mutation $(FILES)

lint: .venv/.ready
	ruff check .

# Without these the tests that need them are skipped, and say so.
system:
	@if command -v chromium >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then \
	  echo "make system: PostgreSQL and Chromium are here already"; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "make system: skipped: it needs root and apt-get. Install PostgreSQL and Chromium yourself, or the tests that need them are skipped."; \
	else \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql chromium >/dev/null && \
	  echo "make system: PostgreSQL and Chromium are installed"; \
	fi
