"""Fits the two polynomials of vf_normal_cdf (worker/cpu/kernels/act.h) and measures their error in float32.

    python3 -m train.fit_normal_cdf
"""

from math import erf, erfc

import numpy as np

SPLIT = 0.927734375  # |z| up to which erf is a polynomial in z^2; beyond, log erfc is one in |z|
FAR_END = 5.0


def minimax(x: np.ndarray, y: np.ndarray, weight: np.ndarray, degree: int, rounds: int = 400) -> np.ndarray:
    """Coefficients, lowest first, of the polynomial with the least weighted maximum error (Lawson's iteration)."""
    powers = np.vander(x, degree + 1, increasing=True)
    lawson = np.ones_like(x)
    best, least = np.zeros(degree + 1), np.inf
    for _ in range(rounds):
        w = weight * np.sqrt(lawson)
        coefficients, *_ = np.linalg.lstsq(powers * w[:, None], y * w, rcond=None)
        error = np.abs((powers @ coefficients - y) * weight)
        if error.max() < least:
            best, least = coefficients, error.max()
        lawson = lawson * (error + 1e-30)
        lawson /= lawson.sum()
    return best


def chebyshev_nodes(low: float, high: float, n: int = 4000) -> np.ndarray:
    return low + (high - low) * (np.cos(np.pi * (np.arange(n) + 0.5) / n) + 1) / 2


def horner(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    value = np.zeros_like(x)
    for c in coefficients[::-1]:
        value = (value * x + c).astype(np.float32)
    return value


def main() -> None:
    s = chebyshev_nodes(1e-9, SPLIT**2 * 1.01)
    z = np.sqrt(s)
    erf_z = np.array([erf(v) for v in z])
    near = minimax(s, erf_z / z - 1, z / erf_z, 5).astype(np.float32)  # erf(z) = z + z near(z^2)
    t = chebyshev_nodes(SPLIT * 0.99, FAR_END)
    erfc_t = np.array([erfc(v) for v in t])
    far = minimax(t, np.log(erfc_t) / t + 1, t * np.maximum(erfc_t, 1e-7) ** 0.35, 6).astype(np.float32)  # log erfc = t far - t

    x = np.arange(-8, 8, 7e-5).astype(np.float32)
    z32 = (x * np.float32(0.70710678)).astype(np.float32)
    t32 = np.abs(z32)
    half = (0.5 * np.exp((horner(far, t32) * t32 - t32).astype(np.float64))).astype(np.float32)
    inner = (0.5 * (horner(near, (z32 * z32).astype(np.float32)) * z32 + z32) + 0.5).astype(np.float32)
    value = np.where(t32 > np.float32(SPLIT), np.where(z32 < 0, half, 1 - half), inner)
    truth = np.array([0.5 * erfc(-float(v) / 2**0.5) for v in x])
    print("near", ", ".join(f"{c:.9g}" for c in near))
    print("far ", ", ".join(f"{c:.9g}" for c in far))
    print(f"largest error {np.abs(value - truth).max():.3g}")


if __name__ == "__main__":
    main()
