# `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help run test test-kernels soak bench fuzz lint generate ebpf setup ci

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run: ## watch this host's connections, as they are written to ./data (DURATION=20 DEMO=0 DATA=./data), or read a capture (PCAP=file)
	@scripts/run.sh

test: ## run every test
	@WEIR_SCALE=ci scripts/test.sh

test-kernels: ## run the kernel programs on Debian's kernels 5.10, 6.1, 6.12 and newest, emulated (KERNELS='6.1 newest')
	@scripts/kernels.sh $(KERNELS)

soak: ## run the tests at full size and write docs/soak.md
	@scripts/soak.sh

bench: ## measure speed
	@scripts/bench.sh

fuzz: ## run every fuzz target (SECONDS_EACH=60 TARGET=name)
	@scripts/fuzz.sh

lint: ## check layout, lints, licences and sources of dependencies
	@scripts/lint.sh

generate: ## renew the generated files: protobuf code, schemas, references, golden files
	@WEIR_REGENERATE=1 cargo test --locked --workspace --test 'generated*'

ebpf: ## rebuild the kernel programs and the committed object
	@scripts/ebpf.sh setup && scripts/ebpf.sh build

setup: ## install what building and testing need
	@scripts/setup.sh test

ci: ## what CI runs
	@.ci/run
