#!/bin/sh
# Builds the shipped plugins that depend only on the sources, and clip_softmax, the template with the styles of
# plugins/clip-softmax/styles.toml.
#
# usage: scripts/shipped.sh [FOLDER]     FOLDER defaults to plugins/
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/plugins}
"$root/scripts/components.sh" "$out" clip-score jpeg-size melody motion palette roughness words
"$root/target/release/host" plugin build "$root/plugins/clip-softmax/styles.toml" --output "$out/clip_softmax.wasm"
