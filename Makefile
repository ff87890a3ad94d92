# `make help` describes every target; each is safe to run again.

# The folder under which `make install` installs.
PREFIX ?= $(HOME)/.local
# A libtorch 2.11, or a Python with torch 2.11, to use instead of the one from PyPI.
TORCH_PYTHON ?=
# Number of seconds for which `make fuzz` runs each target.
FUZZ_SECONDS ?= 600
ifneq ($(strip $(LIBTORCH)),)
override LIBTORCH := $(abspath $(LIBTORCH))
endif

PLUGINS := $(patsubst plugins/%/Cargo.toml,%,$(wildcard plugins/*/Cargo.toml))
SETUP = python3 scripts/setup.py $(if $(LIBTORCH),--libtorch "$(LIBTORCH)") $(if $(TORCH_PYTHON),--torch-python "$(TORCH_PYTHON)")
# Doc tests are linked in a temporary folder, from where the binaries' own path to libtorch leads nowhere.
DOCTEST_LIBRARIES = LD_LIBRARY_PATH="$(CURDIR)/.deps/libtorch/lib$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"
HOME_COPY = $(DESTDIR)$(PREFIX)/lib/ambiguity

.DEFAULT_GOAL := help
.PHONY: registry-test help setup setup-cuda build plugins gpu-bundle python-plugin js-plugin c-plugin package-sdk templates shipped-plugins demo compare fuzz test kill-test parity lint docs install uninstall clean mutants python3

help: ## print this list
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "LIBTORCH=/path or TORCH_PYTHON=python3 makes setup use an existing libtorch 2.11."

python3:
	@command -v python3 >/dev/null || { echo "setup: error: python3 is missing: install it (Debian: \`apt install python3 python3-pip\`)" >&2; exit 1; }

setup: python3 ## install libtorch and ONNX Runtime (174 MB) into .deps/, and Rust's wasm targets
	@$(SETUP)

setup-cuda: python3 ## also install libtorch's CUDA part, NVIDIA's libraries and ONNX Runtime for CUDA (2.6 GB)
	@$(SETUP) --cuda

build: setup ## build the binary target/release/host
	cargo build --release --workspace --bins

gpu-bundle: build ## pack what bench/gpu.sh needs on a machine with a GPU into target/gpu-bundle.tar.xz (64 MiB at most)
	python3 bench/pack.py

plugins: setup ## build the plugin crates into target/wasm32-unknown-unknown/plugin/
	cargo build-plugin $(addprefix -p ,$(PLUGINS))

# A virtualenv of its own; `pip` installs componentize-py (about 40 MB) the first time.
python-plugin: python3 ## build examples/plugin-python into a component (18 MB)
	test -x .deps/componentize/bin/componentize-py || { \
		python3 -m venv .deps/componentize && .deps/componentize/bin/pip install --quiet componentize-py==0.25.1; }
	cd examples/plugin-python && "$(CURDIR)/.deps/componentize/bin/componentize-py" --wit-path ../../wit --world classifier-plugin \
		componentize plugin --stub-wasi --output busyness.wasm

# `npm` installs componentize-js with its dependencies (385 MB) the first time. Without its WASI features, the interpreter
# imports no WASI.
js-plugin: ## build examples/plugin-js into a component (12 MB; needs Node.js 20)
	@command -v npm >/dev/null || { echo "js-plugin: error: npm is missing: install Node.js 20 or newer" >&2; exit 1; }
	test -x .deps/componentize-js/node_modules/.bin/componentize-js || \
		npm install --silent --no-save --prefix .deps/componentize-js @bytecodealliance/componentize-js@0.23.0
	cd examples/plugin-js && "$(CURDIR)/.deps/componentize-js/node_modules/.bin/componentize-js" plugin.js --wit ../../wit \
		--world-name classifier-plugin --disable stdio random clocks http fetch-event --out symmetry.wasm

c-plugin: setup ## build examples/plugin-c into a component (10 kB; needs clang)
	examples/plugin-c/build.sh

package-sdk: setup ## pack and build the SDK's crate into target/new-plugin/package/, and write the lock file of new plugins
	scripts/package-sdk.sh

templates: setup ## rebuild the committed components that `host plugin fit` and `build` bake into
	scripts/templates.sh

shipped-plugins: build ## rebuild plugins/*.wasm and *.onnx, and the shipped CLIP's statistics (after their sources, the templates, the shipped CLIP or the paintings changed)
	scripts/encoder.sh
	scripts/shipped.sh
	scripts/kmeans_image.sh
	scripts/kmeans_text.sh
	scripts/trained.sh

demo: build ## train the small model on this machine; writes images before and after and the reward curve
	scripts/demo.sh

# Each of 15 runs is a demo of its own: 25 minutes on two cores. COMPARE_SEEDS="0" makes one of each plugin.
compare: build ## train the small model under each of five plugins with three seeds, evaluate all by all, lay them side by side
	scripts/compare.sh

test: lint build ## check formatting, lints, all tests, documentation
	python3 -m unittest discover -s scripts -p 'test_*.py'
	$(DOCTEST_LIBRARIES) cargo test --release --workspace
	@$(MAKE) --no-print-directory docs

# The reference implementations, in a virtualenv beside what setup installs.
PARITY_PYTHON ?= .deps/parity/bin/python
.deps/parity/bin/python:
	python3 -m venv .deps/parity && .deps/parity/bin/pip install --quiet torch==2.11.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 trl==0.11.4 scikit-learn==1.9.1 onnx==1.23.2 onnxruntime==1.32.0 accelerate safetensors pillow \
		|| { rm -rf .deps/parity; exit 1; }

parity: build $(PARITY_PYTHON) ## compare with diffusers, transformers, peft and ONNX (creates a virtualenv of 5 GB once)
	cargo test --release --workspace a_network_that_was_written_is_a_plugin
	$(PARITY_PYTHON) tests/reference/parity.py

kill-test: build ## kill trainings, one of several processes among them, at 20 random moments each and resume them: the same to the last bit
	KILLS=20 cargo test --release --workspace change_nothing -- --nocapture

# Debian's docker-registry, skopeo and minisign are unpacked into .deps/registry, wkg is built into .deps/wkg.
registry-test: build ## share plugins through a real registry on this machine, beside skopeo, minisign and wkg
	scripts/registry.sh

# A tool of its own, compiled once into .deps/. Its builds are kept apart from all others, in target/mutants, by one job: two
# would build their changes into the same files.
.deps/mutants/bin/cargo-mutants:
	cargo install --quiet --locked --root .deps/mutants cargo-mutants@27.1.0

MUTANTS = CARGO_TARGET_DIR="$(CURDIR)/target/mutants" LIBTORCH="$(CURDIR)/.deps/libtorch" $(DOCTEST_LIBRARIES) \
	.deps/mutants/bin/cargo-mutants mutants

mutants: setup .deps/mutants/bin/cargo-mutants ## change the numerics line by line and list what no test notices (about three hours)
	mkdir -p target/mutants/models target/mutants/host
	status=0; \
	$(MUTANTS) --package ambiguity-models --output target/mutants/models -- -- can:: lora:: scheduler:: || status=$$?; \
	$(MUTANTS) --package ambiguity-host --output target/mutants/host -- -- rl:: optim:: statistics:: trainer:: || status=$$?; \
	exit $$status

.deps/cargo-fuzz/bin/cargo-fuzz:
	cargo install --quiet --locked --root .deps/cargo-fuzz cargo-fuzz@0.13.2

# Its builds are kept apart from all others, in target/x86_64-unknown-linux-gnu. FUZZ_TARGETS="config lora" restricts it.
fuzz: setup .deps/cargo-fuzz/bin/cargo-fuzz ## fuzz everything that reads untrusted files, FUZZ_SECONDS (default 600) per target (installs cargo-fuzz)
	FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz.sh $(FUZZ_TARGETS)

lint: setup ## check formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

docs: setup ## write the API's documentation into target/doc/, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# The installed folder mirrors this one, so that the binary finds its libraries, weights and plugins the same way.
install: build ## install `host` under PREFIX (default ~/.local)
	install -d "$(HOME_COPY)/target/release" "$(HOME_COPY)/models" "$(HOME_COPY)/plugins" "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 target/release/host "$(HOME_COPY)/target/release/host"
	rm -rf "$(HOME_COPY)/.deps" "$(HOME_COPY)/models/weights"
	for folder in libtorch onnxruntime onnxruntime-cuda; do \
		[ -d ".deps/$$folder" ] || continue; \
		install -d "$(HOME_COPY)/.deps/$$folder"; \
		for part in lib licenses; do \
			if [ -e ".deps/$$folder/$$part" ]; then cp -a ".deps/$$folder/$$part" "$(HOME_COPY)/.deps/$$folder/" || exit 1; fi; \
		done; \
	done
	if [ -d models/weights ]; then cp -R models/weights "$(HOME_COPY)/models/"; fi
	for file in plugins/*.wasm plugins/*.onnx; do if [ -e "$$file" ]; then install -m 644 "$$file" "$(HOME_COPY)/plugins/"; fi; done
	ln -sfn ../lib/ambiguity/target/release/host "$(DESTDIR)$(PREFIX)/bin/host"
	@echo "installed $(DESTDIR)$(PREFIX)/bin/host; \`host completions bash\` writes a completion script"

uninstall: ## remove what `make install` installed under PREFIX
	rm -rf "$(HOME_COPY)" "$(DESTDIR)$(PREFIX)/bin/host"

clean: ## remove what was built, except .deps/ and runs/
	cargo clean
