#!/bin/sh
# Shares plugins through a real registry on 127.0.0.1: Debian's docker-registry, with a login and without, seen by skopeo,
# minisign and wkg too. `make registry-test` runs this. Tools that are not on the PATH are taken from Debian's packages into
# .deps/registry, and wkg is built into .deps/wkg; what cannot be had is skipped, and said.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
deps=$root/.deps/registry
host=$root/target/release/host
export AMBIGUITY_HOME="$root"

say() { echo "registry-test: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

# The packages of the tools, and of the libraries that they need.
packages='docker-registry skopeo minisign apache2-utils libgpgme11 libassuan0 libapr1 libaprutil1 golang-github-containers-common'
fetch() {
	[ -d "$deps/usr/bin" ] && return
	command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 0
	mkdir -p "$deps/packages"
	(cd "$deps/packages" && apt-get download -qq $packages 2>/dev/null) || say "some packages of Debian cannot be downloaded"
	for package in "$deps"/packages/*.deb; do
		[ ! -f "$package" ] || dpkg -x "$package" "$deps"
	done
}
fetch
PATH=$deps/usr/bin:$root/.deps/wkg/bin:$PATH
export PATH
# The libraries of these tools alone: the binary under test keeps its own.
libraries=$(echo "$deps"/usr/lib/*-linux-gnu | tr ' ' :)
with() { LD_LIBRARY_PATH=$libraries "$@"; }
have() { command -v "$1" >/dev/null 2>&1 || { say "SKIPPED: there is no $1"; return 1; }; }

have docker-registry || exit 0
[ -x "$host" ] || fail "target/release/host is not built"

work=$(mktemp -d)
processes=
trap 'kill $processes 2>/dev/null || true; rm -rf "$work"' EXIT
export XDG_CACHE_HOME="$work/cache" XDG_DATA_HOME="$work/data" XDG_CONFIG_HOME="$work/config" DOCKER_CONFIG="$work/docker"
mkdir "$work/docker"
cd "$work"

# serve NAME PORT [EXTRA]: starts a registry.
serve() {
	printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/%s}}\nhttp: {addr: "127.0.0.1:%s"}\n%s\n' \
		"$work" "$1" "$2" "${3-}" >"$1.yml"
	docker-registry serve "$1.yml" >"$1.log" 2>&1 &
	processes="$processes $!"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		sleep 0.3
		grep -q . "/proc/net/tcp" && python3 -c "import socket; socket.create_connection(('127.0.0.1', $2), 1)" 2>/dev/null && return
	done
	fail "the registry $1 does not start: $(tail -3 "$1.log")"
}
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

open_port=$(port)
serve open "$open_port"
sea=oci://127.0.0.1:$open_port/team/sea

say "push, versions, a range, pull"
"$host" -q plugin keygen ours --no-password
cp "$root/plugins/palette.wasm" one.wasm
"$host" -q plugin push ./one.wasm "$sea:1.0.0" --key ours.key
"$host" -q plugin push ./one.wasm "$sea:1.0.1"
cp "$root/plugins/kmeans_image.wasm" two.wasm
"$host" -q plugin push ./two.wasm "$sea:1.1.0" 2>/dev/null && fail "a major change was pushed as 1.1.0"
"$host" -q plugin push ./two.wasm "$sea:2.0.0"
"$host" plugin versions "$sea" | grep -q '2\.0\.0' || fail "versions"
AMBIGUITY_TRUST=off "$host" -q plugin pull "$sea:^1" -o got.wasm
cmp got.wasm one.wasm

say "signature by the fallback tag, trust"
"$host" -q plugin trust add ours ours.pub --namespace "127.0.0.1:$open_port/team"
"$host" plugin verify "$sea:1.0.0" | grep -q 'signed by ours' || fail "verify"
"$host" -q plugin pull "$sea:1.0.1" -o unsigned.wasm 2>/dev/null && fail "an unsigned plugin was accepted"
"$host" -q plugin sign "$sea:1.0.1" --key ours.key
"$host" -q plugin pull "$sea:1.0.1" -o signed.wasm

say "a model with its .toml"
cp "$root/plugins/simple.onnx" art.onnx
printf 'title = "Art"\n' >art.toml
"$host" -q plugin push ./art.onnx "oci://127.0.0.1:$open_port/team/art:0.1.0"
"$host" -q plugin pull "oci://127.0.0.1:$open_port/team/art" 2>/dev/null && fail "an unsigned model was accepted"
AMBIGUITY_TRUST=off "$host" -q plugin pull "oci://127.0.0.1:$open_port/team/art" -o again.onnx
cmp again.onnx art.onnx && cmp again.toml art.toml

if have skopeo; then
	say "skopeo inspects and copies"
	with skopeo inspect --raw --tls-verify=false "docker://127.0.0.1:$open_port/team/sea:1.0.0" >manifest.json
	grep -q 'application/vnd.wasm.config.v0+json' manifest.json || fail "the manifest"
	printf '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
	with skopeo --policy policy.json copy -q --src-tls-verify=false --dest-tls-verify=false \
		"docker://127.0.0.1:$open_port/team/sea:1.0.0" "docker://127.0.0.1:$open_port/copies/sea:1.0.0"
	"$host" -q plugin pull "oci://127.0.0.1:$open_port/copies/sea" -o copied.wasm 2>/dev/null
	cmp copied.wasm one.wasm
fi

if have htpasswd; then
	say "a registry with a login"
	with htpasswd -Bbn me secret >htpasswd
	closed_port=$(port)
	serve closed "$closed_port" "auth: {htpasswd: {realm: test, path: $work/htpasswd}}"
	closed=oci://127.0.0.1:$closed_port/team/sea
	"$host" -q plugin push ./one.wasm "$closed:1.0.0" 2>refused && fail "pushed without a login"
	grep -q 'it needs a login' refused || fail "$(cat refused)"
	login() { printf '{"auths":{"127.0.0.1:%s":{"auth":"%s"}}}' "$closed_port" "$(printf '%s' "$1" | base64)" >docker/config.json; }
	login me:wrong
	"$host" -q plugin push ./one.wasm "$closed:1.0.0" 2>refused && fail "pushed with a wrong login"
	grep -q "do not allow this" refused || fail "$(cat refused)"
	login me:secret
	"$host" -q plugin push ./one.wasm "$closed:1.0.0" --key ours.key
	"$host" -q plugin pull "$closed:^1" -o closed.wasm 2>/dev/null
	cmp closed.wasm one.wasm
fi

if have minisign; then
	say "minisign, both ways"
	"$host" -q plugin sign ./one.wasm --key ours.key
	with minisign -q -Vm one.wasm -p ours.pub
	with minisign -GW -p its.pub -s its.key >/dev/null
	with minisign -Sm one.wasm -s its.key >/dev/null
	"$host" -q plugin verify ./one.wasm --key its.pub >/dev/null
	rm one.wasm.minisig
fi

if ! command -v wkg >/dev/null && [ "${WKG-build}" = build ]; then
	say "building wkg into .deps/wkg (minutes; WKG=none leaves it out)"
	CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
		cargo install --quiet --locked --root "$root/.deps/wkg" wkg@0.16.1 || say "wkg cannot be built"
fi
if have wkg; then
	say "wkg, both ways"
	cat >wkg.toml <<-END
		[namespace_registries]
		team = { registry = "127.0.0.1:$open_port", metadata = { preferredProtocol = "oci", oci = { registry = "127.0.0.1:$open_port", namespacePrefix = "" } } }
		[registry."127.0.0.1:$open_port".oci]
		protocol = "http"
	END
	wkg get --config wkg.toml team:sea@1.0.0 -o ./from-wkg.wasm
	cmp from-wkg.wasm one.wasm
	# `wkg publish` 0.16.1 refuses every component whose world has no versioned package, as all that `wasm-tools component new`
	# makes, whatever --package says; `wkg oci push` writes the same manifest.
	wkg publish --skip-semver-check --config wkg.toml ./one.wasm --package team:land@3.1.4 2>published ||
		say "wkg publish: $(grep -m 1 Error published)"
	wkg oci push --insecure "127.0.0.1:$open_port" "127.0.0.1:$open_port/team/land:3.1.4" ./one.wasm
	AMBIGUITY_TRUST=off "$host" -q plugin pull "oci://127.0.0.1:$open_port/team/land:^3" -o land.wasm
	cmp land.wasm one.wasm
	wkg oci pull --insecure "127.0.0.1:$open_port" "127.0.0.1:$open_port/team/sea:1.0.0" -o ./pulled.wasm
	cmp pulled.wasm one.wasm
fi
say "all is well"
