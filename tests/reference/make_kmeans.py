"""Reference for k-means: scikit-learn's inertia on clustered points, and one Lloyd run from given centers.

    python tests/reference/make_kmeans.py        # needs numpy, scikit-learn, safetensors; writes kmeans.safetensors

Tensors: `points` [600, 32] f32 (twelve overlapping groups of unequal size), `start` [12, 32] f32, `centers` [12, 32] f32
after 5 iterations from `start`, `inertia` [13] f64: scikit-learn's best of 100 starts for k = 2..14, `lloyd_inertia` [1]
f64: that of `centers`, `labels` [600] i64: the nearest of `centers`, point 0 alone in a cluster of its own, and
`silhouette` [1] f64: scikit-learn's silhouette_score of these labels.
"""
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

OUT = Path(__file__).with_name("kmeans.safetensors")


def main():
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(12, 32))
    sizes = rng.multinomial(600, rng.dirichlet(np.full(12, 3.0)))
    points = np.concatenate([group + 0.7 * rng.normal(size=(n, 32)) for group, n in zip(groups, sizes)])
    points = rng.permutation(points).astype(np.float32)
    start = points[rng.choice(len(points), 12, replace=False)]
    lloyd = KMeans(12, init=start, n_init=1, max_iter=5, tol=0, algorithm="lloyd").fit(points)
    inertia = [KMeans(k, n_init=100, random_state=0).fit(points).inertia_ for k in range(2, 15)]
    labels = lloyd.labels_.astype(np.int64)
    labels[0] = 12
    save_file({
        "points": points,
        "start": start,
        "centers": lloyd.cluster_centers_.astype(np.float32),
        "inertia": np.array(inertia, dtype=np.float64),
        "lloyd_inertia": np.array([lloyd.inertia_], dtype=np.float64),
        "labels": labels,
        "silhouette": np.array([silhouette_score(points, labels)], dtype=np.float64),
    }, OUT)
    print(OUT, OUT.stat().st_size, "bytes; inertia", np.round(inertia, 1), "iterations", lloyd.n_iter_)


if __name__ == "__main__":
    main()
