# `make table1` on a bare machine: environment, data, training, evaluation, table.

# What the shell hands down for another Python, pip or Snakemake: a cluster's module, a notebook.
FOREIGN := $(filter-out PYTHON,$(filter PYTHON% SNAKEMAKE_% PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT \
	PIP_CONSTRAINT PIP_REQUIRE_HASHES PIP_NO_DEPS PIP_DRY_RUN,$(.VARIABLES)))
unexport $(FOREIGN)
# Over a `user = true` of pip's own configuration.
export PIP_USER := 0
# Some versions of make hand all of it to $(shell), whatever is unexported.
CLEAN := unset $(FOREIGN) PYTHONHOME

# The one that the tests are run with comes first.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3 python
SUPPORTED := import ensurepip, sys, venv; (3, 11) <= sys.version_info[:2] <= (3, 14) and print("yes")
PYTHON ?= $(firstword $(foreach p,$(PYTHONS),\
	$(if $(shell $(CLEAN); $(p) -c '$(SUPPORTED)' 2>/dev/null),$(p))))
UV ?= uv
CORES ?=
# Snakemake's settings: profiles/default, or profiles/slurm on a cluster.
WORKFLOW_PROFILE ?= profiles/default
ifneq ($(origin WORKFLOW_PROFILE),file)
ifeq ($(wildcard $(WORKFLOW_PROFILE) profiles/$(WORKFLOW_PROFILE)),)
# Snakemake would run without one.
$(error WORKFLOW_PROFILE=$(WORKFLOW_PROFILE) is not there. Choose profiles/default or profiles/slurm)
endif
endif
PORT ?= 5000
DEMO ?= refcoco_vit_l/seed0

# The shell inserts the folder, whatever characters its name has.
RUN := PATH="$$PWD/.venv/bin:$$PATH"
SNAKEMAKE = $(RUN) snakemake --workflow-profile $(WORKFLOW_PROFILE) \
	$(if $(CORES),--cores $(CORES))
# The programs in .venv name its folder and its Python. After a move or a copy they are adapted;
# without that Python, or where PYTHON names another, .venv is made again.
WHICH := import os, sys; print(sys.version_info[:3], os.path.realpath(sys.base_prefix))
GIVEN := $(filter command environment,$(firstword $(origin PYTHON)))
FAULT := $(shell $(CLEAN); test -e .venv/pyvenv.cfg || exit 0; \
	is=$$(.venv/bin/python -c '$(WHICH)' 2>/dev/null) || { echo gone; exit; }; \
	$(if $(GIVEN),test "$$is" = "$$("$(PYTHON)" -c '$(WHICH)' 2>/dev/null)" || { echo other; exit; };) \
	made=$$(sed -n 's|^command = .* -m venv [^/]*||p' .venv/pyvenv.cfg); \
	test -z "$$made" -o "$$made" -ef .venv || echo moved)
AGAIN := $(filter gone other,$(FAULT))
# The development lock holds the extras, among them Slurm's plugin.
INSTALLED := .venv/installed$(if $(filter %/slurm,$(WORKFLOW_PROFILE)),-dev)
COMPILE = $(UV) pip compile pyproject.toml --python-version 3.11 --universal --generate-hashes \
	--no-emit-index-url --no-header --quiet

LIST = awk -F ':.*\#\# ' '/^[a-z0-9]+:.*\#\# / {printf "%-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.DEFAULT_GOAL := help
.PHONY: help all readings report table1 ui demo test lint format lock clean
# Two targets at once would install into one environment at once.
.NOTPARALLEL:

help: ## list the targets
	@$(LIST)

table1: $(INSTALLED) ## install what is locked, then train, evaluate and write results/table1.*
	$(SNAKEMAKE) results/table1.tex
	@$(RUN) python -m mmnet compare || true

all: $(INSTALLED) ## all tables, figures and claims, and, where LaTeX is, results/paper.pdf
	$(SNAKEMAKE)

readings: $(INSTALLED) ## Table R: what each open reading is worth, over 3 seeds, in results/readings.*
	$(SNAKEMAKE) --configfile workflow/readings.yaml -- results/readings.tex

report: all ## results/report.html: all of it, with parameters and run times, in one page
	$(RUN) snakemake --report results/report.html

# A server that MLFLOW_TRACKING_URI names runs already; a database gets one, artifacts beside it.
ui: .venv/installed ## MLflow's page of all runs; PORT=5001 where 5000 is taken
	@page=$$($(RUN) python -m mmnet mlflow-sync --port $(PORT)) || exit 1; \
	echo "In a browser: $$page"; \
	uri=$${MLFLOW_TRACKING_URI:-sqlite:///$$PWD/mlflow.db}; \
	case "$$uri" in http*) exit ;; esac; \
	path=$${uri#*:///}; \
	$(RUN) MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		mlflow ui --workers 1 --port $(PORT) --backend-store-uri "$$uri" \
		--artifacts-destination "$$(dirname "$${path%%\?*}")/mlartifacts"

demo: PORT = 8000
demo: .venv/installed ## the page of a run that make table1 has trained; DEMO=refcocog_vit_l/seed0 PORT=8001
	@$(RUN) python -m mmnet serve --run $(DEMO) --port $(PORT) --open

test: .venv/installed-dev ## install the test tools too, and run the tests
	$(RUN) pytest -n 2 --dist loadgroup

lint: .venv/installed-dev ## check style, types and workflow
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) snakemake --lint
	$(RUN) mypy

format: .venv/installed-dev ## set Python and Snakemake files in our style
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) snakefmt Snakefile workflow

lock: .venv/installed-dev ## lock again after pyproject.toml changed; UPGRADE=--upgrade takes news
	@command -v $(UV) >/dev/null || { echo "$(UV) is not on the PATH. Install uv (pip install uv in\
 an environment of its own), or give UV=/path/to/uv." >&2; exit 1; }
	$(COMPILE) --extra dev $(UPGRADE) --output-file requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock $(UPGRADE) --output-file requirements.lock
	$(RUN) python .ci/lock.py requirements.lock requirements-dev.lock environment.yml

.DEFAULT:
	@echo "There is no target $@. The targets are:" >&2; $(LIST) >&2; exit 2

clean: ## remove results and caches; data, weights and runs stay
	rm -rf results build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mmnet tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is made last, so an interrupted installation has none. It starts from scratch: pip would
# take a half-unpacked package for a whole one.
.venv/installed: requirements.lock pyproject.toml $(if $(filter moved,$(FAULT)),| adapted)
	$(call install,$<)

.venv/installed-dev: requirements-dev.lock pyproject.toml $(if $(filter moved,$(FAULT)),| adapted)
	$(call install,$<)

ifneq ($(AGAIN),)
.PHONY: .venv/installed .venv/installed-dev
endif

define check_path
	@case "$$PWD" in *:*) echo "$$PWD: PATH cannot hold a folder with a colon. Move the checkout."\
 >&2; exit 1 ;; esac
endef

# Without the network.
.PHONY: adapted
adapted:
	$(check_path)
	@echo "make: .venv was made in another folder; adapting it to this one."
	.venv/bin/python -m venv --without-pip .venv
	.venv/bin/python .ci/link.py .

BECAUSE_gone := by a Python that is gone
BECAUSE_other := by another Python
# Where .venv is made again, the old one waits beside it, and is back if that fails.
define install
	$(check_path)
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.14 with venv is on the PATH. Install one\
 (Debian: apt-get install python3-venv), or give PYTHON=/path/to/python3." >&2; exit 1; }
	@test -n "$$("$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null)" || { echo "PYTHON=$(PYTHON) is not Python\
 3.11 to 3.14 with venv. Leave PYTHON out, or give another." >&2; exit 1; }
	$(if $(AGAIN),@echo "make: .venv was made $(BECAUSE_$(FAULT)); installing again with $(PYTHON)."
	@rm -rf .venv.old && mv .venv .venv.old)
	{ "$(PYTHON)" -m venv $(if $(wildcard .venv/installing),--clear) .venv && \
		touch .venv/installing && \
		.venv/bin/python -m pip install --require-hashes -r $(1) && \
		rm .venv/installing && \
		.venv/bin/python .ci/link.py . && \
		touch $@; } $(if $(AGAIN),|| { rm -rf .venv && mv .venv.old .venv; \
		echo "make: the old .venv is back." >&2; exit 1; })
	@rm -rf .venv.old
endef
