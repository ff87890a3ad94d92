#!/usr/bin/env bash
# What the program does on one GPU, in under eight minutes and without a network: does CUDA load, is the first update's
# ratio 1, a short demo, fifty steps of a CAN, Stable Diffusion 2 at its true shape with random weights, the test suite.
#
#     bench/gpu.sh [--device cuda|cuda:N|cpu] [--small] [--out DIR] [--python PYTHON] [--parts "cuda ratio …"] [--keep]
#
# It needs a Python with torch 2.11 (CUDA 13), whose libtorch the program then runs on, and what `make gpu-bundle` packs:
# the built program, the built tests, the shipped model and plugins. Each part has its own time limit and log, so that
# one that fails hides no other. At the end there are a table on stdout and gpu.json beside the logs in DIR ($OUT, else
# bench/out). --small takes sizes for trying the script out on a CPU. It exits with 1 where a part failed.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
device=cuda small='' out=${OUT:-$root/bench/out} python='' keep=''
parts='cuda ratio demo can sd2 suite'

refuse() {
    echo "gpu.sh: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --small) small=--small ;;
        --keep) keep=yes ;;
        --device | --out | --python | --parts)
            [ $# -gt 1 ] || refuse "$1 wants a value"
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
            exit
            ;;
        *) refuse "unknown argument $1 (--help lists them)" ;;
    esac
    shift
done

# Seconds that a part may take. The suite comes last and has what the others left of the whole.
declare -A limit=([cuda]=45 [ratio]=60 [demo]=60 [can]=45 [sd2]=150 [suite]=100)
whole=460
for part in $parts; do
    [ -n "${limit[$part]:-}" ] || refuse "there is no part $part: the parts are ${!limit[*]}"
done

if [ -z "$python" ]; then
    for candidate in python3 python; do
        if "$candidate" -c 'import torch' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || refuse "no python3 here has torch: name one that has with --python"
fi
torch=$("$python" -c 'import os, torch; print(os.path.dirname(os.path.abspath(torch.__file__)))') || refuse "$python has no torch"
export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

export HOST="$root/target/release/host"
[ -x "$HOST" ] || refuse "$HOST is missing: unpack what \`make gpu-bundle\` packs here, or \`make build\`"
mkdir -p "$out" || refuse "$out cannot be made"
out=$(cd "$out" && pwd)
WORK=$(mktemp -d) || refuse "no temporary folder can be made"
export WORK
# Nothing is asked of a network, and nothing of an earlier run is read.
export AMBIGUITY_HOME="$root" HF_HUB_OFFLINE=1 XDG_CACHE_HOME="$WORK/cache" XDG_DATA_HOME="$WORK/data" PYTHONDONTWRITEBYTECODE=1

child=
trap '[ -z "$child" ] || kill "$child"
    if [ -n "$keep" ]; then echo "gpu.sh: runs and models are in $WORK" >&2; else rm -rf "$WORK"; fi' EXIT
trap 'exit 130' INT TERM

# The table and gpu.json, of all parts so far.
report() {
    "$python" "$root/bench/gpu.py" report --device "$device" --out "$out" ${small:+"$small"}
}

failed=0
for part in $parts; do
    seconds=${limit[$part]}
    left=$((whole - SECONDS))
    [ "$part" != suite ] || [ "$left" -lt "$seconds" ] || seconds=$left
    echo "gpu.sh: $part (at most $seconds s)" >&2
    began=$EPOCHREALTIME
    timeout --kill-after=5 "$seconds" "$python" "$root/bench/gpu.py" "$part" --device "$device" --limit $((seconds - 5)) \
        ${small:+"$small"} >"$out/gpu-$part.log" 2>&1 </dev/null &
    child=$!
    wait "$child"
    code=$?
    child=
    case $code in
        0) status=ok ;;
        124 | 137) status='out of time' failed=1 ;;
        *) status=failed failed=1 ;;
    esac
    # Some locales write the fraction after a comma.
    took=$("$python" -c 'import sys; a, b = (float(s.replace(",", ".")) for s in sys.argv[1:]); print(b - a)' "$began" "$EPOCHREALTIME")
    printf '%s\t%s\t%s\t%s\n' "$part" "$status" "$took" "$seconds" >>"$WORK/status.tsv"
    # What is known is kept, also where the machine goes away before the end.
    report >/dev/null
done
report
exit "$failed"
