# Cofferdam. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_TERM_PROGRESS_WHEN ?= never

DIST := target/dist
say = @printf '\033[1m[make] %s\033[0m\n' "$(1)"

.PHONY: help demo test critest conformance kubelet-smoke cluster cluster-test bench bench-workloads soak fuzz node build dist install setup lint unit e2e test-one guest-kernel clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The node's image, and the Go programs that test it where they are used, are made beside the compilations.
BESIDE := e2e/node/beside.sh $(MAKE) --no-print-directory
BESIDE_TOOLS := e2e/node/beside.sh --with-tools $(MAKE) --no-print-directory

demo: setup ## Show a pod in a microVM, from pull to nothing left (does all its set-up)
	@$(BESIDE) build
	@e2e/in-node.sh demo

test: setup ## Run every check and every test (does all its set-up); what CI runs
	@e2e/node/dependencies.sh restore
	@$(BESIDE_TOOLS) lint unit build
	@e2e/node/dependencies.sh save || echo '[make] the compiled dependencies are not kept; the next fresh clone compiles them again'
	@e2e/everything.sh

kubelet-smoke: setup ## A real kubelet on Cofferdam alone: static pods, probes, volumes, logs, exec, restarts
	@$(BESIDE_TOOLS) build
	@e2e/in-node.sh kubelet

cluster: setup ## A shell with kubectl on a cluster whose node runs Cofferdam
	@$(BESIDE) build
	@e2e/in-cluster.sh shell

cluster-test: setup ## All tests on such clusters; TEST=name for some of them, TEST=nodes or TEST=installer for theirs
	@$(BESIDE) build
	@$(if $(filter-out nodes installer,$(or $(TEST),all)),e2e/in-cluster.sh test $(TEST))
	@$(if $(filter nodes,$(or $(TEST),nodes)),e2e/in-cluster.sh nodes)
	@$(if $(filter installer,$(or $(TEST),installer)),e2e/in-cluster.sh installer)

critest: setup ## Kubernetes' own CRI tests; HANDLER=host or vm for one of them, FOCUS=regexp for some specs; writes docs/conformance.md
	@$(BESIDE_TOOLS) build
	@e2e/in-node.sh critest $(HANDLER)

conformance: setup ## Kubernetes' own tests of a node; HANDLER=vm, host or containerd, FOCUS=regexp for some specs; writes docs/conformance.md
	@$(BESIDE) build
	@e2e/in-cluster.sh conformance '$(HANDLER)' '$(FOCUS)'

bench: setup ## Measure beside containerd + runc; writes docs/benchmarks.md and docs/benchmarks.json
	@$(BESIDE) build
	@e2e/in-node.sh bench
	@[ -n "$${BENCH_ARGS:-}" ] || e2e/in-cluster.sh bench

bench-workloads: setup ## Measure work in running pods beside containerd + runc; adds its rows to docs/benchmarks.*
	@$(BESIDE) build
	@BENCH_ARGS="--rows workloads $${BENCH_ARGS:-}" e2e/in-node.sh bench

soak: setup ## 500 host and 100 vm pods come and go and leave nothing (half an hour); SOAK_ARGS='--vm 10' for other counts
	@$(BESIDE) build
	@e2e/in-node.sh soak

fuzz: setup ## Fuzz every parser, guided by coverage, FUZZ_SECONDS (60) each; TARGET=name for one (fuzz/README.md)
	$(call say,building the fuzzer: about 5 minutes of one processor after make unit)
	@fuzz/run.sh

node: setup ## A shell in the node VM with Cofferdam running
	@$(BESIDE) build
	@e2e/in-node.sh shell

e2e: setup ## Only the tests in the node VM; TEST=name for some of them
	@$(BESIDE) build
	@e2e/in-node.sh test $(TEST)

test-one: setup ## Tests in a node that goes on running, so that the next time takes seconds; TEST=name
	@$(BESIDE) build
	@e2e/in-node.sh one $(or $(TEST),$(error say which: make test-one TEST=name))

build: setup ## Build the product into target/dist
	$(call say,building the product: about 8 minutes the first time)
	@deploy/dist.sh $(DIST)

dist: build ## Archive, Debian package, installer image, bill of materials in target/packages; VERSION=x names another version
	$(call say,packaging: about 4 minutes the first time)
	@deploy/packages.sh $(DIST) target/packages

install: ## Install target/dist below DESTDIR (default /), as packages and images do
	@test -d $(DIST) || { echo "nothing is built: run 'make build' first"; exit 1; }
	@# Never into a file that runs; the node's own configuration stays.
	mkdir -p $(or $(DESTDIR),/)
	cp -a --no-preserve=ownership --remove-destination --sparse=always $(DIST)/usr $(or $(DESTDIR),/)
	test -e $(DESTDIR)/etc/cofferdam/config.toml || install -D -m 644 $(DIST)/etc/cofferdam/config.toml $(DESTDIR)/etc/cofferdam/config.toml

setup: ## Install what the builds need on this Debian machine
	@e2e/node/setup-host.sh

lint: setup ## Formatting, clippy, dependencies' licences and sources, import circles, names in the specification
	$(call say,checking formatting)
	@cargo fmt --all --check
	$(call say,clippy: about 3 minutes the first time)
	@cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
	@e2e/check-deps.py
	@e2e/check-circles.py
	@e2e/check-spec.py

unit: setup ## Unit and property tests, and a short run of every fuzz target
	$(call say,unit and property tests: about 4 minutes the first time)
	@cargo test --quiet --workspace --locked

guest-kernel: setup ## Build only the guest's kernel (cached by a hash of its inputs)
	@guest/kernel/build.sh $(DIST)/usr/lib/cofferdam/vmlinux

clean: ## Remove what was built here; caches in ~/.cache/cofferdam stay
	rm -rf target
