#!/bin/sh
# Packages ambiguity-sdk as a registry would get it, builds the package from its own files alone, and writes the lock file of
# the crates that `host plugin new` creates: the dependencies of the SDK in the versions of this workspace.
#
# usage: scripts/package-sdk.sh [FILE]     FILE defaults to host/templates/plugin/Cargo.lock.in
#
# PACKAGE_FLAGS is passed to `cargo package`, as --allow-dirty; CARGO_NET_OFFLINE=true uses no network.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
lock=${1:-$root/host/templates/plugin/Cargo.lock.in}
cd "$root"
# The target folder of the tests of new crates, which build the same dependencies.
# shellcheck disable=SC2086 # PACKAGE_FLAGS is a list.
cargo package --quiet --package ambiguity-sdk --target-dir target/new-plugin ${PACKAGE_FLAGS:-}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' sdk/Cargo.toml)
package=target/new-plugin/package/ambiguity-sdk-$version
for file in wit/plugin.wit LICENSE; do
    # In an archive, the type of a regular file is `-`.
    tar -tvzf "$package.crate" "ambiguity-sdk-$version/$file" | grep -q '^-' || {
        echo "$package.crate: $file is not a regular file" >&2
        exit 1
    }
done
tar -xOzf "$package.crate" "ambiguity-sdk-$version/Cargo.lock" > "$lock.new"
mv "$lock.new" "$lock"
