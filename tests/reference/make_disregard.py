"""Reference for `host plugin fit --disregard`: scikit-learn's principal components of texts' embeddings, and what is left
of points without them.

    python tests/reference/make_disregard.py     # needs numpy, scikit-learn, safetensors; writes disregard.safetensors

Tensors: `texts` [24, 16] f32, eight subjects in three wordings that hardly differ; `projector` [16, 16] f64, onto the
principal components with at least 0.001 of their variance; `points` [60, 16] f32 and `rest` [60, 16] f64: the points of
length 1 without their projection, scaled to length 1 again.
"""
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

OUT = Path(__file__).with_name("disregard.safetensors")


def main():
    rng = np.random.default_rng(0)
    subjects = np.repeat(rng.normal(size=(8, 16)), 3, axis=0)
    texts = normalize(subjects + 0.01 * rng.normal(size=subjects.shape)).astype(np.float32)
    points = normalize(rng.normal(size=(60, 16)) + subjects[rng.integers(24, size=60)]).astype(np.float32)

    pca = PCA(svd_solver="full").fit(texts.astype(np.float64))
    components = pca.components_[pca.explained_variance_ratio_ >= 1e-3]
    projector = components.T @ components
    whole = points.astype(np.float64)
    save_file({
        "texts": texts,
        "projector": projector,
        "points": points,
        "rest": normalize(whole - whole @ projector),
    }, OUT)
    print(OUT, OUT.stat().st_size, "bytes;", len(components), "directions")


if __name__ == "__main__":
    main()
