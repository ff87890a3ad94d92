#!/bin/sh
# Fits the shipped plugin kmeans_image to the shipped CLIP: 27 clusters of the procedural paintings' embeddings, without what
# the embeddings of a run's prompts differ in, the subjects.
# Run it again whenever either changes; the same inputs produce the same bytes.
#
# usage: scripts/kmeans_image.sh [FILE]     FILE defaults to plugins/kmeans_image.wasm
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/plugins/kmeans_image.wasm}
paintings=$(mktemp -d)
trap 'rm -rf "$paintings"' EXIT
# One thread: the embeddings' last bits depend on how the work is divided among threads.
"$root/target/release/host" --threads 1 art --out "$paintings/art" --per-class 96 --size 64 --seed 1000003
"$root/target/release/host" --threads 1 plugin fit --images "$paintings/art" --encoder tiny-art -k 27 \
    --disregard "$root/plugins/prompts.txt" --output "$out" --no-sheet \
    --title "27 clusters of the procedural paintings, whatever their subject, by the small CLIP" --author "The Ambiguity authors" \
    --license Apache-2.0
