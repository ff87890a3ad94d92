#!/bin/sh
# Fits the shipped plugin kmeans_text to the shipped CLIP: 5 clusters of the names of WikiArt's 27 styles, the paper's
# number. Run it again whenever the shipped CLIP changes; the same CLIP produces the same bytes.
#
# usage: scripts/kmeans_text.sh [FILE]     FILE defaults to plugins/kmeans_text.wasm
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/plugins/kmeans_text.wasm}
# One thread: the embeddings' last bits depend on how the work is divided among threads.
"$root/target/release/host" --threads 1 plugin fit --texts "$root/plugins/wikiart_styles.txt" --encoder tiny-art -k 5 \
    --output "$out" --title "5 clusters of the names of WikiArt's 27 styles, by the small CLIP" \
    --author "The Ambiguity authors" --license Apache-2.0
