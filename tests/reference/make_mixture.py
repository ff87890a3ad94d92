"""Reference for Gaussian mixtures: scikit-learn's responsibilities under given parameters, and its best likelihood.

    python tests/reference/make_mixture.py       # needs numpy, scikit-learn, safetensors; writes mixture.safetensors

Tensors: `points` [300, 4] f32, of three correlated groups; `weights` [5] f64, `means` [5, 4] f64 and `precisions`
[5, 4, 4] f64 of a mixture, and `log_responsibilities` [300, 5] f64 and `log_likelihood` [1] f64 (the mean over the points)
under it; `fitted` [1] f64: the mean log-likelihood of scikit-learn's best mixture of three components in 50 runs, whose
covariances have 0.001 of the coordinates' mean variance added to their diagonals.
"""
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.mixture import GaussianMixture

OUT = Path(__file__).with_name("mixture.safetensors")


def main():
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=4) * 2 + rng.normal(size=(n, 4)) @ rng.normal(size=(4, 4)) for n in (150, 100, 50)]
    points = rng.permutation(np.concatenate(groups)).astype(np.float32)

    factors = rng.normal(size=(5, 4, 4))
    precisions = factors @ factors.transpose(0, 2, 1) + 0.3 * np.eye(4)
    given = GaussianMixture(5)
    given.weights_ = rng.dirichlet(np.ones(5))
    given.means_ = 2 * rng.normal(size=(5, 4))
    given.precisions_cholesky_ = np.linalg.cholesky(precisions)
    given.covariances_ = np.linalg.inv(precisions)
    probabilities = given.predict_proba(points.astype(np.float64))
    # The same, without the underflow of small probabilities.
    likelihoods, log_responsibilities = given._estimate_log_prob_resp(points.astype(np.float64))
    assert np.allclose(np.exp(log_responsibilities), probabilities)

    variance = points.astype(np.float64).var(axis=0).mean()
    best = GaussianMixture(3, n_init=50, tol=1e-9, max_iter=10_000, reg_covar=1e-3 * variance, random_state=0)
    best.fit(points.astype(np.float64))
    save_file({
        "points": points,
        "weights": given.weights_,
        "means": given.means_,
        "precisions": precisions,
        "log_responsibilities": log_responsibilities,
        "log_likelihood": np.array([likelihoods.mean()]),
        "fitted": np.array([best.score(points.astype(np.float64))]),
    }, OUT)
    print(OUT, OUT.stat().st_size, "bytes; fitted", best.score(points.astype(np.float64)), "of", best.lower_bound_)


if __name__ == "__main__":
    main()
