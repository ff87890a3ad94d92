#!/usr/bin/env bash
# The main job on the small model: teach it ambiguity by the k-means plugin, and show what came of it.
# Wants `make build` to be done. Writes a new run under runs/.
set -eu
cd "$(dirname "$0")/.."
run="runs/demo-$(date +%Y%m%d-%H%M%S)"
echo "host train --plugin kmeans_image.wasm --preset tiny-art --out $run"
target/release/host train --plugin kmeans_image.wasm --preset tiny-art --out "$run"
