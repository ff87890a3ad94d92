# Every target says in `make help` what it does; each is safe to run again.

# Where `make install` puts things.
PREFIX ?= $(HOME)/.local
# A libtorch 2.11, or a Python that has torch 2.11, to use instead of the one from PyPI.
TORCH_PYTHON ?=
# How long `make fuzz` runs each of its targets.
FUZZ_SECONDS ?= 600
ifneq ($(strip $(LIBTORCH)),)
override LIBTORCH := $(abspath $(LIBTORCH))
endif

PLUGINS := $(patsubst plugins/%/Cargo.toml,%,$(wildcard plugins/*/Cargo.toml))
SETUP = python3 scripts/setup.py $(if $(LIBTORCH),--libtorch "$(LIBTORCH)") $(if $(TORCH_PYTHON),--torch-python "$(TORCH_PYTHON)")
HOME_COPY = $(DESTDIR)$(PREFIX)/lib/ambiguity

.DEFAULT_GOAL := help
.PHONY: help setup setup-cuda build plugins templates shipped-plugins demo fuzz test kill-test lint docs install uninstall clean python3

help: ## this list
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "LIBTORCH=/path or TORCH_PYTHON=python3 lets setup use a libtorch 2.11 that is there already."

python3:
	@command -v python3 >/dev/null || { echo "setup: error: python3 is missing: install it (Debian: \`apt install python3 python3-pip\`)" >&2; exit 1; }

setup: python3 ## bring libtorch and ONNX Runtime (174 MB) into .deps/, and Rust's wasm targets
	@$(SETUP)

setup-cuda: python3 ## also bring libtorch's CUDA half and NVIDIA's libraries (2.3 GB)
	@$(SETUP) --cuda

# Tests are built along: without them the dependencies would be built twice, with other features.
build: setup ## build the binary target/release/host
	cargo build --release --workspace --bins --tests

plugins: setup ## build the plugin crates into target/wasm32-unknown-unknown/plugin/
	cargo build-plugin $(addprefix -p ,$(PLUGINS))

templates: setup ## rebuild the committed components that `host plugin fit` bakes into
	scripts/templates.sh

shipped-plugins: build ## fit plugins/kmeans_image.wasm again (after the shipped CLIP or the paintings changed)
	scripts/kmeans_image.sh

demo: build ## train the small model on this machine, with a picture before and after and the reward's curve
	scripts/demo.sh

test: lint build ## formatting, lints, all tests, documentation
	python3 -m unittest discover -s scripts -p 'test_*.py'
	cargo test --release --workspace
	@$(MAKE) --no-print-directory docs

kill-test: build ## kill a training run at 20 random moments and resume it: the same to the last bit
	KILLS=20 cargo test --release --workspace kills_change_nothing -- --nocapture

fuzz: build ## throw damaged files at what reads plugins, FUZZ_SECONDS (default 600) for each of four targets
	target/release/fuzz --seconds $(FUZZ_SECONDS)

lint: setup ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

docs: setup ## the API's documentation into target/doc/, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# The installed folder mirrors this one, so that the binary finds its libraries, weights and plugins the same way.
install: build ## install `host` under PREFIX (default ~/.local)
	install -d "$(HOME_COPY)/target/release" "$(HOME_COPY)/models" "$(HOME_COPY)/plugins" "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 target/release/host "$(HOME_COPY)/target/release/host"
	rm -rf "$(HOME_COPY)/.deps" "$(HOME_COPY)/models/weights"
	for folder in libtorch onnxruntime; do \
		install -d "$(HOME_COPY)/.deps/$$folder"; \
		for part in lib licenses; do \
			if [ -e ".deps/$$folder/$$part" ]; then cp -a ".deps/$$folder/$$part" "$(HOME_COPY)/.deps/$$folder/" || exit 1; fi; \
		done; \
	done
	if [ -d models/weights ]; then cp -R models/weights "$(HOME_COPY)/models/"; fi
	for file in plugins/*.wasm plugins/*.onnx; do if [ -e "$$file" ]; then install -m 644 "$$file" "$(HOME_COPY)/plugins/"; fi; done
	ln -sfn ../lib/ambiguity/target/release/host "$(DESTDIR)$(PREFIX)/bin/host"
	@echo "installed $(DESTDIR)$(PREFIX)/bin/host; \`host completions bash\` writes a completion script"

uninstall: ## remove what `make install` put under PREFIX
	rm -rf "$(HOME_COPY)" "$(DESTDIR)$(PREFIX)/bin/host"

clean: ## remove what was built; .deps/ and runs/ stay
	cargo clean
