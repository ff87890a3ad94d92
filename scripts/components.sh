#!/bin/sh
# Builds plugin crates into components whose bytes depend only on the sources and the pinned toolchain: paths of this
# machine are remapped.
#
# usage: scripts/components.sh FOLDER CRATE...     writes FOLDER/CRATE.wasm, with `_` for `-` as Cargo does
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=$1
shift
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$root"
# Unpacks the crates, so that the loop finds their folders.
cargo fetch --locked --quiet
flags=
for crates in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    flags="$flags, \"--remap-path-prefix=${crates%/}=/crates\""
done
# A target folder of its own, so that these flags and those of `make plugins` do not invalidate each other's build.
# shellcheck disable=SC2046 # One word per crate is intended.
CARGO_INCREMENTAL=0 cargo build-plugin --locked $(printf -- '--package %s ' "$@") --target-dir target/templates \
    --config "target.wasm32-unknown-unknown.rustflags=[${flags#, }]"
mkdir -p "$out"
for crate in "$@"; do
    file=$(printf %s "$crate" | tr - _).wasm
    cp "target/templates/wasm32-unknown-unknown/plugin/$file" "$out/$file.new"
    mv "$out/$file.new" "$out/$file"
done
