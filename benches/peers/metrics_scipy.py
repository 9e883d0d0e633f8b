"""Values of evaluation metrics by numpy and scipy, on features that a formula makes.

tests/eval.rs makes the same features and holds langevin's values against those printed here.

    set(seed, n, dim, shift)[i, j] = h(seed, i, j) + h(seed, i, j + 1) / 2 + shift

h is a 12-bit hash over 4096, so every number is exact in float32. Needs numpy and scipy.

    python metrics_scipy.py                       # the table
    python metrics_scipy.py --features a b        # the Frechet distance of two float32 .npy files [n, dim]
"""

import argparse

import numpy as np
from scipy.linalg import sqrtm
from scipy.special import log_softmax


def hashed(seed, n, dim):
    mask = np.uint64(0xFFFFFFFF)
    i, j = np.meshgrid(np.arange(n, dtype=np.uint64), np.arange(dim, dtype=np.uint64), indexing="ij")
    x = (np.uint64(seed) * np.uint64(0x9E3779B1) + i * np.uint64(0x85EBCA77) + j * np.uint64(0xC2B2AE3D)) & mask
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x2C1B3C6D)) & mask
    x = ((x ^ (x >> np.uint64(12))) * np.uint64(0x297A2D39)) & mask
    return (x >> np.uint64(20)).astype(np.float64) / 4096


def features(seed, n, dim, shift=0.0):
    h = hashed(seed, n, dim + 1)
    x = h[:, :-1] + h[:, 1:] / 2 + shift
    assert (x.astype(np.float32) == x).all()
    return x


def frechet(a, b):
    """d^2 of Heusel et al. (2017), by a matrix square root."""
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * np.real(sqrtm(sa @ sb)))


def distances(a, b):
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def radii(a, k):
    return np.sort(distances(a, a), axis=1)[:, k]


def prdc(real, fake, k):
    """Kynkaanniemi et al. (2019), Naeem et al. (2020)."""
    d, real_radii, fake_radii = distances(real, fake), radii(real, k), radii(fake, k)
    inside = d <= real_radii[:, None]
    return (
        inside.any(0).mean(),
        (d <= fake_radii[None]).any(1).mean(),
        inside.sum(0).mean() / k,
        (d.min(1) <= real_radii).mean(),
    )


def inception_score(logits, splits):
    """Salimans et al. (2016)."""
    scores = []
    for i in range(splits):
        log_p = log_softmax(logits[i * len(logits) // splits : (i + 1) * len(logits) // splits], axis=1)
        p = np.exp(log_p)
        scores.append(np.exp((p * (log_p - np.log(p.mean(0)))).sum(1).mean()))
    return np.mean(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", nargs=2, metavar="NPY")
    args = parser.parse_args()
    if args.features:
        print(frechet(*(np.load(path).astype(np.float64) for path in args.features)))
        return
    for n, m, dim, shift, offset in [(300, 250, 16, 0.125, 0), (40, 60, 64, 0, 0), (300, 250, 16, 0.125, 1000)]:
        real, fake = features(1, n, dim, offset), features(2, m, dim, offset + shift)
        nearest = np.median(distances(fake, real).min(1))
        print(f"{n} {m} {dim} {shift} {offset}: frechet {frechet(real, fake):.12g}")
        for k in 3, 5:
            print(f"    precision, recall, density, coverage at {k}", *(f"{v:.12g}" for v in prdc(real, fake, k)))
        print(f"    median of nearest {nearest:.12g}")
    logits = 8 * features(3, 205, 7)
    print(f"inception score, 10 and 1 splits: {inception_score(logits, 10):.12g} {inception_score(logits, 1):.12g}")


if __name__ == "__main__":
    main()
