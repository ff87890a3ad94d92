#!/bin/sh
# Runs each target of fuzz/ for FUZZ_SECONDS, or only those named as arguments, and prints a line for each.
#
# Coverage comes from flags of the stable compiler, without a sanitizer. libFuzzer learns the operands of comparisons of
# bytes from calls of memcmp, which are therefore not expanded. The optimization level is that of libFuzzer's manual.
set -eu
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-600}
export PATH="$PWD/.deps/cargo-fuzz/bin:$PATH"
export RUSTFLAGS='-Cllvm-args=-max-loads-per-memcmp=0 -Clink-arg=-Wl,-rpath,$ORIGIN/../../../.deps/libtorch/lib'
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
programs=target/x86_64-unknown-linux-gnu/release
cargo fuzz build --sanitizer none --features libfuzzer

# Inputs are written to files for the readers that take a path.
TMPDIR=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
mkdir -p target/fuzz

failed=0
for target in ${*:-$(cargo fuzz list)}; do
	log=target/fuzz/$target.log
	dictionary=fuzz/dictionaries/$target.dict
	mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
	verdict='no fault'
	"$programs/$target" "fuzz/corpus/$target" -artifact_prefix="fuzz/artifacts/$target/" -max_total_time="$seconds" \
		-timeout=10 -rss_limit_mb=3072 -print_final_stats=1 $([ ! -f "$dictionary" ] || echo "-dict=$dictionary") \
		>"$log" 2>&1 || { verdict="a fault: see $log"; failed=1; }
	number() { sed -n "s/^$1 *//p" "$log" | tail -1; }
	edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
	inputs=$(sed -n 's/.* corp: \([0-9]*\)\/.*/\1/p' "$log" | tail -1)
	echo "$target: $(number stat::number_of_executed_units:) executions, $edges edges, $inputs inputs kept, $verdict"
done
exit $failed
