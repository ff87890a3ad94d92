#!/usr/bin/env bash
# Checks and measures the program on one GPU, in under ten minutes and without a network: whether CUDA loads, the ratio
# of the first update, a short demo, two processes on one GPU, fifty steps of a CAN, Stable Diffusion 2 at its true shape
# with random weights, the same against TRL (skipped where Python lacks trl, diffusers and peft), and the unit tests.
#
#     bench/gpu.sh [--device cuda|cuda:N|cpu] [--small] [--out DIR] [--python PYTHON] [--parts "cuda ratio …"] [--keep]
#
# It needs a Python with torch 2.11 for CUDA 13, whose libtorch the program then uses, and the files that `make
# gpu-bundle` packs. Each part has its own time limit and log. The table is printed last; gpu.json and the logs are in DIR
# (default: $OUT, else bench/out). --small uses small sizes, to try the script on a CPU; --keep keeps runs and models. The
# exit code is 1 if a part failed.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
device=cuda small='' out=${OUT:-$root/bench/out} python='' keep=''
parts='cuda ratio demo processes can sd2 trl suite'

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

# Time limits in seconds. The suite runs last and gets what is left of the whole.
declare -A limit=([cuda]=45 [ratio]=60 [demo]=60 [processes]=45 [can]=45 [sd2]=150 [trl]=120 [suite]=100)
whole=480
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
    [ -n "$python" ] || refuse "no Python with torch was found: name one with --python"
fi
torch=$("$python" -c 'import os, torch; print(os.path.dirname(os.path.abspath(torch.__file__)))') || refuse "$python has no torch"
export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

export HOST="$root/target/release/host"
[ -x "$HOST" ] || refuse "$HOST is missing: unpack the bundle of \`make gpu-bundle\` here, or run \`make build\`"
mkdir -p "$out" || refuse "$out cannot be made"
out=$(cd "$out" && pwd)
WORK=$(mktemp -d) || refuse "no temporary folder can be made"
export WORK
# No network, and no caches of earlier runs.
export AMBIGUITY_HOME="$root" HF_HUB_OFFLINE=1 XDG_CACHE_HOME="$WORK/cache" XDG_DATA_HOME="$WORK/data" PYTHONDONTWRITEBYTECODE=1

child=
trap '[ -z "$child" ] || kill -KILL -- "-$child"
    if [ -n "$keep" ]; then echo "gpu.sh: runs and models are in $WORK" >&2; else rm -rf "$WORK"; fi' EXIT
trap 'exit 130' INT TERM

report() {
    "$python" "$root/bench/gpu.py" report --device "$device" --out "$out" ${small:+"$small"}
}

failed=0
for part in $parts; do
    seconds=${limit[$part]}
    left=$((whole - SECONDS))
    [ "$part" != suite ] || [ "$left" -lt "$seconds" ] || seconds=$left
    echo "gpu.sh: $part (at most $seconds s)" >&2
    # Microseconds; in some locales the fraction follows a comma.
    began=${EPOCHREALTIME//[^0-9]/}
    timeout --kill-after=5 "$seconds" "$python" "$root/bench/gpu.py" "$part" --device "$device" --limit $((seconds - 5)) \
        ${small:+"$small"} >"$out/gpu-$part.log" 2>&1 </dev/null &
    child=$!
    wait "$child"
    code=$?
    # `timeout` leads a process group: what a part leaves running would slow down the next one.
    kill -KILL -- "-$child" 2>/dev/null
    child=
    case $code in
        0) status=ok ;;
        77) status=skipped ;;
        124 | 137) status='out of time' failed=1 ;;
        *) status=failed failed=1 ;;
    esac
    printf '%s\t%s\t%s\t%s\n' "$part" "$status" $((${EPOCHREALTIME//[^0-9]/} - began)) "$seconds" >>"$WORK/status.tsv"
    # The results so far survive if the machine is lost before the end.
    report >/dev/null
done
report
exit "$failed"
