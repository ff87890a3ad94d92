"""k-means: `host plugin fit` and scikit-learn, interleaved, on the same embeddings, threads and iterations.

Lloyd: both start from the same centers and make the same number of iterations (tolerance 0); the time is that of the
clustering alone, without reading the file. Whole fit: both choose their own k-means++ starts and stop by themselves;
`host` with its default of 10 starts is compared with scikit-learn's n_init=10. Prints medians, the ratio and both
inertias.

    python bench/kmeans.py [--rounds 5] [--points 27000] [--dim 768] [-k 27] [--iterations 20] [--threads 2] [--fit]
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def embeddings(n, dim, k):
    """Unit vectors without clear clusters (64 directions of decreasing variance, and noise), so that Lloyd iterates."""
    import numpy as np

    rng = np.random.default_rng(0)
    directions = rng.normal(size=(64, dim)) / np.sqrt(np.arange(1, 65))[:, None]
    points = rng.normal(size=(n, 64)) @ directions + 0.5 * rng.normal(size=(n, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points = points.astype(np.float32)
    return points, points[rng.choice(n, k, replace=False)].copy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=27_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("-k", type=int, default=27)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fit", action="store_true", help="the whole fit with 10 starts too")
    parser.add_argument("--host", type=Path, default=ROOT / "target/release/host")
    arguments = parser.parse_args()
    # Before numpy is loaded: its BLAS reads them once.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    from safetensors.numpy import save_file
    from sklearn.cluster import KMeans

    points, start = embeddings(arguments.points, arguments.dim, arguments.k)
    with tempfile.TemporaryDirectory() as folder:
        data, init = Path(folder) / "data.safetensors", Path(folder) / "init.safetensors"
        save_file({"embeddings": points}, data)
        save_file({"centers": start}, init)

        def host(*flags):
            command = [arguments.host, "--threads", str(arguments.threads), "plugin", "fit", "--embeddings", data,
                       "-k", f"{arguments.k}..{arguments.k}", "--no-normalize", "--json", *map(str, flags)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
            row = json.loads(output)["table"][0]
            return row["seconds"], row["inertia"], row["iterations"]

        def sklearn(**options):
            begin = time.perf_counter()
            found = KMeans(arguments.k, algorithm="lloyd", **options).fit(points)
            return time.perf_counter() - begin, found.inertia_, found.n_iter_

        def compare(name, flags, options):
            sides = {"host": [], "scikit-learn": []}
            for _ in range(arguments.rounds):
                sides["host"].append(host(*flags))
                sides["scikit-learn"].append(sklearn(**options))
            medians = {side: statistics.median(seconds for seconds, _, _ in runs) for side, runs in sides.items()}
            print(f"{name}: {arguments.points} x {arguments.dim}, k = {arguments.k}, {arguments.threads} threads, "
                  f"median of {arguments.rounds}")
            for side, runs in sides.items():
                seconds = [f"{run[0]:.3f}" for run in runs]
                _, inertia, iterations = runs[0]
                print(f"  {side:13} {medians[side]:7.3f} s ({' '.join(seconds)})  inertia {inertia:.3f}, "
                      f"{iterations} iterations")
            print(f"  host / scikit-learn: {medians['host'] / medians['scikit-learn']:.2f}", flush=True)

        compare("Lloyd", ["--init", init, "--max-iterations", arguments.iterations, "--tolerance", 0],
                {"init": start, "n_init": 1, "max_iter": arguments.iterations, "tol": 0})
        if arguments.fit:
            compare("whole fit, 10 starts", [], {"n_init": 10, "random_state": 0})


if __name__ == "__main__":
    main()
