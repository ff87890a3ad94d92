#!/usr/bin/env bash
# Trains the shipped small model for style ambiguity under the k-means plugin, and prints the result.
# Needs `make build`. Writes a new run under runs/.
set -eu
cd "$(dirname "$0")/.."
run="runs/demo-$(date +%Y%m%d-%H%M%S)"
echo "host train --plugin kmeans_image.wasm --preset tiny-art --out $run"
target/release/host train --plugin kmeans_image.wasm --preset tiny-art --out "$run"
