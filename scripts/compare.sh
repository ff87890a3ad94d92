#!/bin/sh
# The paper's comparison on the small model: five plugins with three seeds each, one run on each core. Every run holds the other
# four plugins out, and is evaluated by all of them. What is there already is resumed or kept. COMPARE_HOST names another binary.
set -eu
cd "$(dirname "$0")/.."
host=${COMPARE_HOST:-target/release/host}
out=${COMPARE_OUT:-runs/compare}
plugins="kmeans_image kmeans_text clip_softmax dcgan simple"
seeds=${COMPARE_SEEDS:-0 1 2}
images=${COMPARE_IMAGES:-192}
mkdir -p "$out"

# Trains and evaluates one run: PLUGIN SEED. Further settings of every run are in COMPARE_SET, as in `train.epochs=2`.
one() {
    run=$out/$1-$2
    held_out=
    for other in $plugins; do
        [ "$other" = "$1" ] || held_out="$held_out --held-out $other"
    done
    settings=
    for setting in ${COMPARE_SET:-monitor.count=192}; do settings="$settings --set $setting"; done
    if [ -f "$run/config.toml" ]; then
        $host --threads 1 --quiet train --resume "$run"
    else
        # shellcheck disable=SC2086 # the names of plugins and settings have no spaces
        $host --threads 1 --quiet train --preset tiny-art --plugin "$1" $held_out --seed "$2" $settings --out "$run"
    fi > "$out/$1-$2.log" 2>&1
    $host --threads 1 --quiet eval "$run" --count "$images" > "$run/eval.txt" 2>> "$out/$1-$2.log"
    echo "$1, seed $2: $(sed -n 1p "$out/$1-$2.log")"
}

if [ $# -eq 2 ]; then
    one "$1" "$2"
    exit
fi
for seed in $seeds; do
    for plugin in $plugins; do echo "$plugin $seed"; done
done | xargs -P "$(nproc)" -L 1 scripts/compare.sh
# shellcheck disable=SC2046 # the names of runs have no spaces
set -- $(for seed in $seeds; do for plugin in $plugins; do echo "$out/$plugin-$seed"; done; done)
$host report "$@" --out "$out/comparison.html"
$host report "$@" --csv > "$out/comparison.csv"
echo "$out/comparison.html $out/comparison.csv"
