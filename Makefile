# SignalDB. `make run` to try it, `make test` before a commit.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ENV := . scripts/env.sh;

.PHONY: help deps test-deps jepsen-deps run cluster test mutations test-deployment sim fuzz jepsen jepsen-full lint bench install clean

help:
	@echo "make run      build the release binary and run one node on loopback (data in .data/)"
	@echo "make cluster  three nodes as three processes on this machine, until Ctrl-C (data in .data/cluster/)"
	@echo "make test     run every test that CI runs; SEEDS=10 for whoever is in a hurry: fewer seeds of the simulation than 200"
	@echo "make mutations  break the server on purpose, in one way after the other, and see that a test notices each"
	@echo "make test-deployment  one node, and three with PostgreSQL and S3: an export and a query, on the release binary"
	@echo "make sim SEEDS=200  three simulated nodes under faults, once a seed; SEED=1234 runs one and prints every event"
	@echo "make fuzz TARGET=traceql SECONDS=60  random bytes to what reads a client's; the targets are the folders of fuzz/corpus"
	@echo "make jepsen   break three release nodes for two minutes and judge what they did (exit 0 valid, 1 invalid, 2 unknown);"
	@echo "              the report is jepsen/store/latest/index.html"
	@echo "              CATALOG=postgres: with their catalog in a private PostgreSQL; SEED=7: the choices of an earlier run"
	@echo "make jepsen-full  for an hour, as root: power losses, full, slow and damaged disks, a network that loses packets too"
	@echo "              SECONDS=600, SCENARIO=full|overlap|network|outages|power-loss-all|damage|default or a file (jepsen/scenarios)"
	@echo "              RELAYS=1: nodes reach each other through relays, as they do without root"
	@echo "make lint     format check and clippy"
	@echo "make bench    measure a release node; appends to bench/RESULTS.md"
	@echo "make install  install the binary into PREFIX (default /usr/local)"

deps:
	@scripts/install-deps.sh

test-deps:
	@scripts/install-deps.sh tests

run: deps
	@$(ENV) target=$${CARGO_TARGET_DIR:-target}; \
	[ -x "$$target/release/signaldb" ] || echo "The first build takes 25 to 45 minutes on two cores (RocksDB and DataFusion); later ones take minutes."; \
	cargo build --locked --release -p signaldb-node; \
	exec "$$target/release/signaldb"

cluster: deps
	@$(ENV) target=$${CARGO_TARGET_DIR:-target}; \
	[ -x "$$target/release/signaldb" ] || echo "The first build takes 25 to 45 minutes on two cores (RocksDB and DataFusion); later ones take minutes."; \
	cargo build --locked --release -p signaldb-node; \
	exec "$$target/release/signaldb" cluster dev --nodes 3

# Seeds of the simulation, here and in `sim`: 200 take about nine minutes on two cores beside a build.
SEEDS ?= 200
test: test-deps
	@# All targets in one go: another selection of packages would mean other features and a second build of everything.
	@$(ENV) cargo build --locked --workspace --all-targets; \
	export SIGNALDB_PYTHON="$$(scripts/venv.sh)" SIGNALDB_SIM_SEEDS="$(SEEDS)"; \
	cargo test --locked --workspace

# The same build as for `make test`; the tests of the modules named so.
mutations: test-deps
	@$(ENV) cargo build --locked --workspace --all-targets; \
	cargo test --locked --workspace -- mutations::

test-deployment: test-deps
	@scripts/test-deployment.sh

# The same selection of packages as above, for the same reason.
sim: deps
	@$(ENV) cargo test --locked --workspace --test sim -- $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) \
	  $(if $(FROM),--from $(FROM)) $(if $(SECONDS),--seconds $(SECONDS))

# libFuzzer's instrumentation is for nightly compilers; RUSTC_BOOTSTRAP has ours take its options. The lock file is ours, to
# which cargo adds libFuzzer. What is found goes to the first folder, the seeds are only read.
TARGET ?= traceql
fuzz: deps
	@$(ENV) export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$$PWD/fuzz/target"; \
	command -v cargo-fuzz >/dev/null || { echo "make fuzz needs cargo-fuzz: cargo install --locked cargo-fuzz" >&2; exit 1; }; \
	[ -d "fuzz/corpus/$(TARGET)" ] || { echo "TARGET is one of: $$(ls fuzz/corpus | xargs)" >&2; exit 1; }; \
	cp Cargo.lock fuzz/Cargo.lock; mkdir -p "fuzz/found/$(TARGET)"; \
	cargo fuzz run --sanitizer none "$(TARGET)" "fuzz/found/$(TARGET)" "fuzz/corpus/$(TARGET)" -- \
	  -max_total_time=$(or $(SECONDS),60) -max_len=16384 -timeout=10

CATALOG ?= sqlite
jepsen-deps:
	@scripts/install-deps.sh jepsen $(if $(filter postgres,$(CATALOG)),tests)

# Without Python the tables are not read by another reader: the verdict says so.
jepsen: jepsen-deps
	@$(ENV) cargo build --locked --release -p signaldb-node -p signaldb-bench -p signaldb-jepsen; \
	target=$${CARGO_TARGET_DIR:-target}; export SIGNALDB_PYTHON="$$(scripts/venv.sh || true)"; \
	"$$target/release/signaldb-jepsen" --node "$$target/release/signaldb" --catalog "$(CATALOG)" \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

# Mounts and networks are made in namespaces of their own: they end with the last process of the run, however it ends, and no
# other process sees them. Such a network has nothing at first but a loopback that is down, and never a proxy.
SCENARIO ?= full
jepsen-full: jepsen-deps
	@$(ENV) cargo build --locked --release -p signaldb-node -p signaldb-bench -p signaldb-jepsen; \
	target=$${CARGO_TARGET_DIR:-target}; export SIGNALDB_PYTHON="$$(scripts/venv.sh || true)"; \
	alone=(); \
	if unshare --net --mount ip link set lo up 2>/dev/null; \
	then alone=(env -u http_proxy -u https_proxy -u all_proxy -u HTTP_PROXY -u HTTPS_PROXY -u ALL_PROXY \
	  unshare --net --mount sh -c 'ip link set lo up && exec "$$@"' sh); \
	elif unshare --mount true 2>/dev/null; then alone=(unshare --mount); fi; \
	"$${alone[@]}" "$$target/release/signaldb-jepsen" --node "$$target/release/signaldb" --catalog "$(CATALOG)" \
	  --scenario "$(SCENARIO)" $(if $(RELAYS),--relays) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out "$(OUT)")

lint: deps
	@$(ENV) cargo fmt --all -- --check; cargo clippy --locked --workspace --all-targets -- -D warnings; \
	cargo clippy --locked -p signaldb-model -- -D warnings # As releases have it: without mutations.

bench: test-deps
	@$(ENV) cargo build --locked --release -p signaldb-node -p signaldb-bench -p signaldb-jepsen; \
	export SIGNALDB_BENCH_PYTHON="$$(scripts/bench-venv.sh)"; \
	target=$${CARGO_TARGET_DIR:-target}; bench() { "$$target/release/signaldb-bench" --node "$$target/release/signaldb" --results bench/RESULTS.md "$$@"; }; \
	bench; bench --nodes 3

PREFIX ?= /usr/local
install: deps
	@$(ENV) cargo build --locked --release -p signaldb-node; \
	install -D "$${CARGO_TARGET_DIR:-target}/release/signaldb" "$(PREFIX)/bin/signaldb"

clean:
	rm -rf .data .venv .venv-bench jepsen/store fuzz/target fuzz/found fuzz/artifacts fuzz/coverage
