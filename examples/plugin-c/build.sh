#!/bin/sh
# Builds the C plugin: clang to objects, then wasm-component-ld (it comes with Rust's wasm32-wasip2 target) to a
# component. The bindings are committed; these commands generated them:
#
#   cargo install wit-bindgen-cli --version 0.63.0 --locked --no-default-features --features c
#   wit-bindgen c wit/plugin.wit --world classifier-plugin --out-dir examples/plugin-c/bindings
#
# usage: examples/plugin-c/build.sh [FILE]     FILE defaults to examples/plugin-c/lightness.wasm
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/lightness.wasm}
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
for source in "$here/plugin.c" "$here/libc.c" "$here/bindings/classifier_plugin.c"; do
    # -fno-builtin keeps clang from turning memcpy's own loop into a call of memcpy.
    "${CLANG:-clang}" --target=wasm32-unknown-unknown -std=c11 -O3 -msimd128 -ffreestanding -fno-builtin -nostdlibinc \
        -Wall -Wextra -I "$here/include" -I "$here/bindings" -c "$source" \
        -o "$objects/$(basename "$(dirname "$source")")-$(basename "$source" .c).o"
done
tools=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
"$tools/wasm-component-ld" --wasm-ld-path "$tools/gcc-ld/wasm-ld" --no-entry -o "$out" \
    "$objects"/*.o "$here/bindings/classifier_plugin_component_type.o"
echo "$out"
