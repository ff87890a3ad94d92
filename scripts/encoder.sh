#!/bin/sh
# Computes models/weights/tiny-art/clip/embedding_statistics.safetensors: how the embeddings of the images that the shipped
# encoder was trained on are distributed. These images are those of `host pretrain clip` with seed 27, of which `host art`
# draws 120 per style; its seed is derived from 27 (`derive_seed(27, 0, 0, Purpose::Data)`).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$root/target/release/host" art --out "$folder/paintings" --per-class 120 --seed 7739942627076355683
"$root/target/release/host" embed statistics --encoder tiny-art --images "$folder/paintings"
