# The front door. `make run` shows Headroom at work without a cluster; `make test` proves all of it against real Kubernetes.

.DEFAULT_GOAL := help
.PHONY: help run test cluster fmt lint unit loom miri fuzz it sla soak soak-sanitized bench deny features docs image image-test package crd

cache := $(or $(HEADROOM_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME)/headroom,$(HOME)/.cache/headroom))
deny_version := 0.20.2
deny := $(cache)/cargo-deny-$(deny_version)/bin/cargo-deny
fuzz_version := 0.13.2
fuzz := $(cache)/cargo-fuzz-$(fuzz_version)/bin/cargo-fuzz
fuzz_targets := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
fuzz_seconds ?= 60
version := $(shell sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q;}' Cargo.toml)

# need PROGRAM REASON: one line and a failure where a prerequisite is missing.
need = @command -v $(1) >/dev/null 2>&1 || { echo "error: $(2)" >&2; exit 1; }

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

run: need-rust need-cc ## the demo: agent, adapter and a loaded sample service in one terminal
	@echo "building; the first time takes some minutes"
	cargo build --bin headroom
	@exec target/debug/headroom demo $(ARGS)

test: need-rust need-cc need-go fmt lint docs deny features unit loom it ## everything .ci/run checks
	@echo "make test: all checks passed"

cluster: need-rust need-cc need-go kubernetes ## a real control plane with everything deployed, until Ctrl-C
	cargo test --quiet --test it -- --ignored --exact cluster --nocapture

.PHONY: need-rust need-cc need-go kubernetes packaging monitoring
need-rust:
	$(call need,cargo,this needs Rust 1.95 or newer: 'cargo' is not on the PATH)
need-cc:
	$(call need,cc,this needs a C compiler (for jemalloc and ring): 'cc' is not on the PATH)
need-go:
	$(call need,go,this needs Go 1.26 or newer (it builds the real Kubernetes of the tests): 'go' is not on the PATH)

fmt: ## formatting
	cargo fmt --all --check

lint: ## clippy, warnings denied
	cargo clippy --all-targets --quiet -- -D warnings

docs: ## the documentation builds without a warning
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet

deny: $(deny) ## licences, bans, sources, duplicates
	$(deny) --log-level error check licenses bans sources

.PHONY: advisories
advisories: $(deny) ## known vulnerabilities; clones the advisory database, so not part of `make test`
	$(deny) check advisories

$(deny):
	cargo install cargo-deny --version $(deny_version) --locked --debug --quiet --root $(cache)/cargo-deny-$(deny_version)

features: ## each feature builds alone
	cargo check --quiet --no-default-features --features agent
	cargo check --quiet --no-default-features --features adapter

unit: ## unit and documentation tests
	cargo test --lib --bins --examples
	cargo test --doc

# Each proof has a target directory of its own, so that no other build is thrown away for it.
loom: need-rust ## every interleaving of the lock-free parts
	RUSTFLAGS="--cfg loom" cargo run --quiet --locked --release --manifest-path loom/Cargo.toml --target-dir target/loom

# Nightly alone has Miri: `rustup component add miri rust-src --toolchain nightly`.
miri: need-rust ## the lock-free parts on real threads, checked for data races and undefined behaviour
	cargo +nightly miri run --quiet --locked --manifest-path loom/Cargo.toml --target-dir target/miri

# Nightly alone has the sanitizer. With `fuzz_seconds=N` each parser is driven for that long; inputs that break one are left in
# fuzz/artifacts.
fuzz: need-rust need-cc $(fuzz) ## drives every parser with inputs that follow its branches; some ten minutes to build
	cp Cargo.lock fuzz/Cargo.lock
	RUSTUP_TOOLCHAIN=nightly $(fuzz) build
	@set -e; for target in $(fuzz_targets); do \
		mkdir -p fuzz/corpus/$$target; \
		RUSTUP_TOOLCHAIN=nightly $(fuzz) run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(fuzz_seconds) -timeout=10 -verbosity=0 -print_final_stats=1; \
	done

$(fuzz):
	cargo install cargo-fuzz --version $(fuzz_version) --locked --debug --quiet --root $(cache)/cargo-fuzz-$(fuzz_version)

kubernetes packaging monitoring: need-go
	@tests/$@/build.sh >/dev/null

it: kubernetes packaging monitoring ## integration tests on a real control plane
	cargo test --test it -- --test-threads 4

# The last ones are in docs/pictures. Needs Node.js with npm, and Chromium.
.PHONY: pictures
pictures: need-rust need-cc kubernetes monitoring ## the dashboards of a loaded system, drawn with Grafana's own components; ten minutes
	cargo test --test it -- --ignored --exact dashboards::pictures --nocapture

soak: need-rust need-cc ## ten minutes of everything the agent does at once, under load
	HEADROOM_SOAK_SECONDS=600 cargo test --test it -- soak:: --nocapture

sla: need-rust need-cc kubernetes ## 300 autoscalers at once, and faults under load: twelve minutes; the report is target/it-artifacts/sla.md
	rm -f target/it-artifacts/sla.md
	cargo test --test it -- --ignored --test-threads 1 --nocapture three_hundred_autoscalers faults_under_load

# Nightly alone has the sanitizer, and std is not built again for it. `--target` keeps it out of build scripts.
soak-sanitized: need-rust need-cc ## a minute of the soak in a program whose memory AddressSanitizer watches; ten minutes to build
	@set -e; host=$$(rustc +nightly -vV | sed -n 's/^host: //p'); \
	RUSTFLAGS="-Zsanitizer=address --cfg sanitized -Cforce-frame-pointers=yes" cargo +nightly build --locked --bin headroom \
		--target $$host --target-dir target/sanitized; \
	HEADROOM_SOAK_PROGRAM=$(CURDIR)/target/sanitized/$$host/debug/headroom cargo test --test it -- soak:: --nocapture

# With the profile of `make run` and `make test`: that of `cargo bench` would compile every crate again.
bench: need-rust need-cc ## what the histogram, the request layer and a scrape cost; fails where a bar is missed
	cargo bench --quiet --profile dev

# The image's revision is the commit; its files are as old as it is.
image: ## the image headroom:VERSION, with Docker or buildah
	@set -e; builder=$$(command -v docker || command -v buildah) || { echo "error: this needs docker or buildah" >&2; exit 1; }; \
	$$builder build --tag headroom:$(version) --build-arg VERSION=$(version) --build-arg REVISION=$$(git rev-parse HEAD) \
		--build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .

image-test: need-rust need-cc ## the image's last stage, built twice and run with limits; needs buildah, podman, runc, skopeo and root
	cargo build --bin headroom
	tests/image/test.sh

package: need-rust ## what the crate holds, in target/package, built once from there
	cargo package --locked

crd: ## writes manifests/base/crd.yaml from the types
	cargo run --quiet -- crd > manifests/base/crd.yaml
