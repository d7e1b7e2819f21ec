"""Rounding of weights to integers so that outputs change least, and the scales to do it with."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

__all__ = ["mean_shift", "round_weights", "weight_scales"]

Array = np.ndarray[Any, Any]

# Columns whose errors are passed on to all later columns at once, as one matrix product.
_BLOCK = 128
# Fractions of the full range that are tried as the range.
_SHRINK = np.linspace(1.0, 0.5, 26)
_TINY = float(np.finfo(np.float32).tiny) * 2.0**24


def weight_scales(
    weight: Array,
    limits: tuple[int, int],
    method: Literal["minmax", "mse"] = "minmax",
    gram_diag: Array | None = None,
) -> Array:
    """One scale per output channel, for integers around zero.

    Args:
        weight: ``[out, in]`` float.
        limits: Smallest and largest integer; the smallest is not above 0, the largest above 0.
        method: ``minmax`` represents every weight without clipping. ``mse`` clips the largest
            where the squared error of all is less then.
        gram_diag: Mean squares of the inputs, ``[in]``, that weigh errors with ``mse``.

    Returns:
        ``[out, 1]`` float32, positive; 1 for channels of zeros.
    """
    low, high = limits
    w = weight.astype(np.float64)
    top = w.max(axis=1, initial=0.0) / high
    full = np.maximum(top, w.min(axis=1, initial=0.0) / low) if low else top
    full = np.where(full > _TINY, full, 1.0)[:, None]
    if method == "minmax":
        return full.astype(np.float32)
    weights = np.ones(w.shape[1]) if gram_diag is None else np.asarray(gram_diag, np.float64)
    best, error = full, np.full(full.shape, np.inf)
    for share in _SHRINK:
        scale = full * share
        found = _nearest(w, scale, limits) * scale - w
        mse = (found * found) @ weights[:, None]
        best, error = np.where(mse < error, scale, best), np.minimum(mse, error)
    return best.astype(np.float32)


def round_weights(
    weight: Array,
    scale: Array,
    limits: tuple[int, int],
    gram: Array | None = None,
    damping: float = 0.01,
) -> Array:
    """Round weights to integers.

    To the nearest one without a Gram matrix. With it, column by column, those of the largest inputs
    first, and the error of each column is made up for by the columns that are not yet rounded, so
    that the squared error of the output is least. A row stays with its nearest integers where that
    gains nothing.

    Args:
        weight: ``[out, in]`` float; that of a convolution reshaped to it.
        scale: ``[out, 1]`` float.
        limits: Smallest and largest integer.
        gram: ``[in, in]``, mean products of pairs of inputs. It may be singular; inputs that are
            always zero are rounded to the nearest.
        damping: Share of the mean of the diagonal that is added on the diagonal.

    Returns:
        ``[out, in]`` int32.

    References:
        Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
        Transformers" (2022), algorithm 1; Hassibi and Stork, "Second order derivatives for network
        pruning: Optimal Brain Surgeon" (1992).
    """
    w = weight.astype(np.float64)
    s = np.asarray(scale, np.float64).reshape(-1, 1)
    nearest = _nearest(w, s, limits)
    if gram is None:
        return nearest.astype(np.int32)
    live = np.flatnonzero(np.diag(gram) > 0)
    if not len(live):
        return nearest.astype(np.int32)
    order = live[np.argsort(-np.diag(gram)[live], kind="stable")]
    h = np.asarray(gram[np.ix_(order, order)], np.float64)
    compensated = nearest.copy()
    compensated[:, order] = _compensate(w[:, order], s, limits, _inverse_root(h, damping))
    better = _error(compensated[:, order], w[:, order], s, h) < _error(
        nearest[:, order], w[:, order], s, h
    )
    return np.where(better[:, None], compensated, nearest).astype(np.int32)


def mean_shift(weight: Array, integers: Array, scale: Array, mean: Array) -> Array:
    """How far the mean of each output moves where integers replace weights.

    Subtracting it from the bias puts the mean back.

    Args:
        weight: ``[out, in]`` float.
        integers: ``[out, in]``, what replaces it, in units of ``scale``.
        scale: ``[out, 1]``.
        mean: Mean inputs, ``[in]``.

    Returns:
        ``[out]`` float64.

    References:
        Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction"
        (2019), section 4.2.
    """
    error = integers.astype(np.float64) * np.asarray(scale, np.float64) - weight
    return np.asarray(error @ np.asarray(mean, np.float64))


def _nearest(weight: Array, scale: Array, limits: tuple[int, int]) -> Array:
    return np.clip(np.rint(weight / scale), *limits)


def _error(integers: Array, weight: Array, scale: Array, gram: Array) -> Array:
    """Mean squared error of each output, ``[out]``."""
    d = integers * scale - weight
    return np.asarray(((d @ gram) * d).sum(axis=1))


def _inverse_root(gram: Array, damping: float) -> Array:
    """Upper Cholesky factor of the inverse of the damped Gram matrix.

    The damping grows until rounding errors cannot make the matrix indefinite any more.
    """
    mean = float(np.diag(gram).mean())
    damping = max(damping, 1e-10)
    while True:
        damped = gram + damping * mean * np.eye(len(gram))
        try:
            inverse = np.linalg.inv(damped)
            root: Array = np.linalg.cholesky((inverse + inverse.T) / 2).T
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return root


def _compensate(weight: Array, scale: Array, limits: tuple[int, int], root: Array) -> Array:
    w, out = weight.copy(), np.empty_like(weight)
    columns = w.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        # Within a block column by column; later blocks get the errors of the whole block at once.
        block, u = w[:, start:stop], root[start:stop, start:stop]
        errors = np.empty_like(block)
        for j in range(stop - start):
            q = _nearest(block[:, j : j + 1], scale, limits)
            out[:, start + j : start + j + 1] = q
            error = (block[:, j : j + 1] - q * scale) / u[j, j]
            block[:, j:] -= error * u[j : j + 1, j:]
            errors[:, j : j + 1] = error
        w[:, stop:] -= errors @ root[start:stop, stop:]
    return out
