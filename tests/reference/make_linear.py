"""Reference for linear probes: scikit-learn's logistic regression on embeddings of the procedural paintings.

    python tests/reference/make_linear.py [--host target/release/host]

It needs numpy, scikit-learn and safetensors, and writes linear.safetensors. With --host the paintings are painted and
embedded again by the shipped encoder, otherwise the embeddings are those of the existing file.

Tensors: `embeddings` [432, 64] f32 of 16 paintings of each style, raw, `classes` [432] i64, `held_out` [432] u8: 12 of
each style, so that a probe of the other four makes mistakes, and for each regularization A, `log_probabilities.A`
[81, 27] f32 of every fourth held-out painting and `accuracy.A` [1] f64 on all of them. The embeddings are scaled to length 1, the coordinates
of those trained on to mean 0 and variance 1, and the loss is the sum of the cross-entropies + A/2 ‖W‖².
"""
import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

OUT = Path(__file__).with_name("linear.safetensors")
PER_CLASS, N_TRAINING = 16, 4
REGULARIZATIONS = ("0.01", "1", "100")


def embed(host):
    with tempfile.TemporaryDirectory() as folder:
        art, out = Path(folder) / "art", Path(folder) / "embeddings.safetensors"
        subprocess.run([host, "art", "--out", art, "--per-class", str(PER_CLASS), "--seed", "77"], check=True)
        subprocess.run([host, "embed", "images", "--encoder", "tiny-art", art, "--out", out], check=True)
        return load_file(out)["embeddings"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    host = parser.parse_args().host
    embeddings = embed(host) if host else load_file(OUT)["embeddings"]
    # The files are sorted, so that the styles follow each other.
    classes = np.arange(len(embeddings)) // PER_CLASS
    held_out = np.arange(len(embeddings)) % PER_CLASS >= N_TRAINING
    x = embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = StandardScaler().fit(x[~held_out]).transform(x)
    tensors = {"embeddings": embeddings, "classes": classes, "held_out": held_out.astype(np.uint8)}
    for name in REGULARIZATIONS:
        probe = LogisticRegression(C=1 / float(name), tol=1e-9, max_iter=100_000).fit(x[~held_out], classes[~held_out])
        accuracy = probe.score(x[held_out], classes[held_out])
        tensors[f"log_probabilities.{name}"] = probe.predict_log_proba(x[held_out][::4]).astype(np.float32)
        tensors[f"accuracy.{name}"] = np.array([accuracy])
        print(f"regularization {name}: accuracy {accuracy:.4f}")
    save_file(tensors, OUT)
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
