#!/bin/sh
# Builds the template components that `host plugin fit` and `host plugin build` bake into. The bytes depend only
# on the sources and the pinned toolchain.
#
# usage: scripts/templates.sh [FOLDER]     FOLDER defaults to host/src/plugin/templates
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
exec "$root/scripts/components.sh" "${1:-$root/host/src/plugin/templates}" kmeans clip-softmax linear mixture
