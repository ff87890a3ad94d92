#!/bin/sh
# Builds the test plugin of a frozen interface version. It is run when a version is released, and never again for that
# version: the committed component must keep loading.
#
# usage: scripts/frozen.sh VERSION [FILE]     FILE defaults to tests/guests/frozen-VERSION.wasm
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
version=$1
out=${2:-$root/tests/guests/frozen-$version.wasm}
cd "$root"
# A target folder of its own, since the crate is a workspace of its own.
cargo build --release --locked --target wasm32-unknown-unknown --target-dir target/frozen \
    --manifest-path "tests/guests/frozen-$version/Cargo.toml"
cp target/frozen/wasm32-unknown-unknown/release/frozen.wasm "$out.new"
mv "$out.new" "$out"
