# Everything a user or CI runs. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RULE := deploy/kubernetes/components/monitoring/prometheusrule.yaml
# All tests, some files at a time. Whoever names arguments names them all: PYTEST_ARGS="tests/unit -x" is one process.
PYTEST_ARGS ?= --numprocesses=auto
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help setup test demo lint docs lock audit sbom kuairand bench bench-peers clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with everything that the other targets need

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"streamtrain needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# uv installs in a third of pip's time. What only pip can reach (a mirror of pip.conf), pip installs.
	@mkdir -p build && awk '/^[^ #]/ { on = /^uv==/ } on' requirements.lock >build/uv.txt
	$(PIP) --require-hashes -r build/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock || \
	  $(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

test: setup  ## run all tests; starts the servers that it needs by itself
	$(BIN)/python -m pytest $(PYTEST_ARGS)

demo: setup  ## watch a model learn, commit, export and serve
	$(BIN)/python -m examples.demo

lint: setup  ## formatting, lint, types, and whether the generated docs are true
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m streamtrain.reference --check docs

docs: setup $(RULE)  ## write docs/configuration.md and docs/metrics.md from the code, and the Prometheus operator's rules
	$(BIN)/python -m streamtrain.reference docs

$(RULE): deploy/prometheus/rules.yml
	{ printf '%s\n' '# deploy/prometheus/rules.yml for the Prometheus operator; `make docs` writes it.' \
	  'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' 'metadata:' '  name: streamtrain' 'spec:'; \
	  grep -v '^ *#' $< | sed 's/^\(.\)/  \1/'; } >$@

lock: setup  ## resolve requirements.lock again, for Python 3.11 to 3.13
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --upgrade pyproject.toml --group pyproject.toml:dev --group pyproject.toml:demo -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --upgrade --constraint requirements.lock pyproject.toml -o deploy/container/requirements.lock

sbom: setup  ## write build/sbom.json: what the container image holds, in CycloneDX
	mkdir -p build
	$(BIN)/cyclonedx-py requirements deploy/container/requirements.lock --pyproject pyproject.toml --output-reproducible -o build/sbom.json

audit: setup  ## look up known vulnerabilities of what is locked; needs the public database
	$(BIN)/python .ci/audit.py

kuairand: setup  ## join the public KuaiRand set (KUAIRAND_DIR) into build/kuairand/
	$(BIN)/python -m examples.kuairand

bench: setup  ## run all benchmarks
	$(BIN)/python -m benchmarks

bench-peers: setup  ## make the environments of what benchmarks compare with (8 GB; build/peers)
	$(BIN)/python -m benchmarks.peers

clean:  ## remove what was built, but not .venv
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
