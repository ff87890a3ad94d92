"""Processes of one thread: epochs of one and of two processes on the small model, interleaved, and what their exchanges take.

    python3 bench/processes.py [ROUNDS] [HOST]

Prints the median seconds of an epoch of each, and their ratio, which is 2 at best. The machine needs two idle cores.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EPOCHS = 2


def epochs(host, processes, folder):
    command = [host, "--threads", "1", "--verbose", "train", "--preset", "tiny-art", "--plugin", "kmeans_image", "--nproc", processes]
    command += ["--set", f"train.epochs={EPOCHS}", "--set", "monitor.count=16", "--out", folder]
    log = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    exchanges = re.search(r"(\d+) exchanges between processes took ([\d.]+) s", log)
    return [sum(line["seconds"].values()) for line in lines if "seconds" in line], exchanges and exchanges.groups()


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    host = sys.argv[2] if len(sys.argv) > 2 else "target/release/host"
    seconds = {1: [], 2: []}
    weights = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            for processes in seconds:
                run = Path(folder) / f"{processes}-{i}"
                taken, exchanges = epochs(host, processes, run)
                seconds[processes] += taken
                weights[processes] = (run / "pytorch_lora_weights.safetensors").read_bytes()
                if exchanges:
                    print(f"{exchanges[0]} exchanges took {exchanges[1]} s, of {sum(taken):.2f} s of training")
    one, two = (statistics.median(seconds[processes]) for processes in (1, 2))
    same = "the same weights" if weights[1] == weights[2] else "OTHER WEIGHTS"
    print(f"1 process {one:.2f} s, 2 processes {two:.2f} s an epoch: {one / two:.2f} times as fast, {same}")


if __name__ == "__main__":
    main()
