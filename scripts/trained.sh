#!/bin/sh
# Trains the shipped plugins dcgan and simple on the procedural paintings, with the presets tiny-art: about seven
# minutes on two cores. Their cards, plugins/*.md, have the metrics of the committed run.
#
# usage: scripts/trained.sh [FOLDER]     the runs are kept in FOLDER if it is named
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
runs=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$runs"' EXIT
train() {
    "$root/target/release/host" "$1" train --preset tiny-art --out "$runs/$2" \
        --set 'can.authors=["The Ambiguity authors"]' --set can.license=Apache-2.0
    cp "$runs/$2/$2.onnx" "$root/plugins/$2.onnx"
}
train classifier simple
train can dcgan
