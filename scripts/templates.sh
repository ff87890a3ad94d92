#!/bin/sh
# Builds the template components that `host plugin fit` bakes into. The bytes depend on the sources and the pinned
# toolchain alone: paths of this machine are mapped away.
#
# usage: scripts/templates.sh [FOLDER]     FOLDER defaults to host/src/plugin/templates
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/host/src/plugin/templates}
cd "$root"
# Unpacks the crates, so that the loop sees where they lie.
cargo fetch --locked --quiet
flags=
for crates in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    flags="$flags, \"--remap-path-prefix=${crates%/}=/crates\""
done
# A folder of its own, so that these flags and those of `make plugins` don't take turns at invalidating the build.
CARGO_INCREMENTAL=0 cargo build-plugin --locked --package kmeans --target-dir target/templates \
    --config "target.wasm32-unknown-unknown.rustflags=[${flags#, }]"
mkdir -p "$out"
cp target/templates/wasm32-unknown-unknown/plugin/kmeans.wasm "$out/kmeans.wasm.new"
mv "$out/kmeans.wasm.new" "$out/kmeans.wasm"
