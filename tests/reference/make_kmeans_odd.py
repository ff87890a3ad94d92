"""Reference for k-means on odd data: scikit-learn's best inertia and the sizes of its clusters.

    python tests/reference/make_kmeans_odd.py    # needs numpy, scikit-learn, safetensors; writes kmeans_odd.safetensors

Tensors, for each data set NAME: `points.NAME` [n, dim] f32; `sizes.NAME` [k] i64, ascending; `inertia.NAME` [1] f64, of
the best of 200 starts on the same numbers as f64, so that rounding has no part in it.
"""
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.cluster import KMeans

OUT = Path(__file__).with_name("kmeans_odd.safetensors")


def groups(rng, sizes, dim=6, apart=8.0):
    """Points around distant centers, `sizes` of each."""
    return np.concatenate([apart * rng.normal(size=dim) + rng.normal(size=(n, dim)) for n in sizes])


def data_sets(rng):
    """Name → (points, k)."""
    four = groups(rng, [20] * 4)
    corners = np.repeat(rng.normal(size=(5, 3)), 12, axis=0)
    pairs = np.concatenate([[x, y] + 1e-3 * rng.normal(size=(15, 2)) for x in (-100, 100) for y in (0, 0.02)])
    constant, narrow = four.copy(), np.full((40, 5), 7.25)
    constant[:, 2], narrow[:, 3] = 1e7, np.repeat([0, 1, 3, 7], 10) + 0.05 * rng.normal(size=40)
    one_far, outlier, zeros = four.copy(), four.copy(), four * (rng.random(four.shape) < 0.1)
    one_far[:, 0] -= 5e4
    outlier[7] += 1e4
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    bits = np.array([[i >> b & 1 for b in range(4)] for i in range(16)])
    return {
        "offset-3000": (four + 3000, 4),
        "offset-a-million": (four + 1e6, 4),
        "offset-in-one-dimension": (one_far, 4),
        "offset-mixed": (four + 1e4 * rng.normal(size=6), 4),
        "near-identical": (1 + 1e-5 * groups(rng, [15] * 3), 3),
        "near-identical-far-away": (1000 + 1e-2 * groups(rng, [15] * 3), 3),
        "tight-pairs-far-apart": (pairs, 4),
        "constant-dimension": (constant, 4),
        "constant-but-one": (narrow, 4),
        "constant-zero": (four * [1, 0, 1, 0, 0, 1], 4),
        "duplicates": (corners, 5),
        "duplicates-merged": (corners + 50, 4),
        "outlier": (outlier, 5),
        "huge": (1e24 * four, 4),
        "tiny": (1e-26 * four, 4),
        "scales": (four * [1e-3, 1e-2, 0.1, 1, 10, 100], 4),
        "one-dimension": (groups(rng, [10] * 5, dim=1, apart=40.0) + 500, 5),
        "line": (np.outer(np.repeat([0, 10, 30, 70], 9) + rng.normal(size=36), [3, -1, 2, 0.5]), 4),
        "almost-as-many-clusters": (rng.normal(size=(12, 3)) - 200, 11),
        "zeros": (zeros, 3),
        "unequal-sizes": (groups(rng, [100, 20, 3, 1]) + 60, 4),
        "ring": (np.stack([np.cos(angles), 3 * np.sin(angles)], axis=1) + 0.01 * rng.normal(size=(48, 2)), 4),
        "corners-of-a-cube": (np.repeat(bits, 3, axis=0) + 0.02 * rng.normal(size=(48, 4)) + 9, 16),
        "two-sides": (np.concatenate([four + 30, -four - 30]), 2),
    }


def main():
    tensors = {}
    for name, (points, k) in data_sets(np.random.default_rng(0)).items():
        points = points.astype(np.float32)
        exact = KMeans(k, n_init=200, random_state=0, tol=0).fit(points.astype(np.float64))
        tensors |= {
            f"points.{name}": points,
            f"sizes.{name}": np.sort(np.bincount(exact.labels_, minlength=k)).astype(np.int64),
            f"inertia.{name}": np.array([exact.inertia_]),
        }
        with np.errstate(all="ignore"):
            rounded = KMeans(k, n_init=200, random_state=0).fit(points).inertia_ if abs(points).max() < 1e18 else np.nan
        print(f"{name:26} {points.shape} k {k:2}  inertia {exact.inertia_:.6g}, as f32 {rounded:.6g}")
    save_file(tensors, OUT)
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
