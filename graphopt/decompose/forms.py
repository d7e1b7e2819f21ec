"""Forms of a layer: what its weight is a product of, and of which sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np

from graphopt.decompose.product import Metric, Product
from graphopt.reconstruct import Layer

__all__ = ["KINDS", "Form", "Kind", "fitted", "forms", "start"]

Array = np.ndarray[Any, Any]
Kind = Literal["depthwise", "spatial", "input", "output", "tucker"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Weights of a form as shares of the layer's, roughly: more do not pay, fewer leave nothing of it.
_SHARES = (0.75, 0.62, 0.5, 0.4, 0.3, 0.22, 0.15, 0.1)
_MOST = 0.9
# What numbers of channels are multiples of, as kernels compute blocks of them: for the least size
# of two factors.
_MULTIPLES = ((64, 16), (32, 8), (16, 4), (0, 1))


@dataclasses.dataclass(frozen=True)
class Form:
    """How a layer is computed in parts.

    Attributes:
        kind: Which parts. ``depthwise``: several convolutions of single channels, each followed by
            one of single elements, summed (Guo et al., "Network Decoupling", 2018). ``spatial``: a
            kernel along the first axis that it is longer than 1 along, then one along the others
            (Jaderberg et al., 2014). ``input``: fewer channels first, then the kernel. ``output``:
            the kernel for fewer channels, then all of them (Zhang et al., 2016); of a matrix
            product this is its truncated SVD. ``tucker``: both (Tucker-2; Kim et al., 2016).
        ranks: Channels between the parts; the number of summands, if ``depthwise``.
        joined: Whether the summands are one convolution of concatenated channels.
    """

    kind: Kind
    ranks: tuple[int, ...]
    joined: bool = False

    @property
    def operators(self) -> int:
        """How many convolutions or products it is made of."""
        if self.kind == "depthwise":
            return self.ranks[0] + (1 if self.joined else self.ranks[0])
        return 3 if self.kind == "tucker" else 2

    def __str__(self) -> str:
        """The form as reports name it."""
        ranks = ",".join(map(str, self.ranks))
        return f"{self.kind} {ranks}{' joined' if self.joined else ''}"


def forms(layer: Layer, kinds: Sequence[Kind]) -> Iterator[Form]:
    """Forms that are smaller than a layer, of each kind the largest first."""
    c, o, k = sizes(layer)
    for kind in kinds:
        seen: set[Form] = set()
        for form in _candidates(kind, layer):
            if form not in seen and _weights(form, layer) <= _MOST * c * k * o:
                seen.add(form)
                yield form


def _candidates(kind: Kind, layer: Layer) -> Iterator[Form]:
    c, o, k = sizes(layer)
    if kind == "depthwise":
        if k > 1 and c > 1:
            for terms in range(min(k, o) - 1, 0, -1):
                yield Form(kind, (terms,))
                if terms > 1 and layer.groups == 1:
                    yield Form(kind, (terms,), joined=True)
        return
    if kind == "spatial":
        first, rest = halves(layer)
        if first == 1 or rest == 1:
            return
        for share in _SHARES:
            rank = _rounded(share * c * o * k / (c * first + o * rest), min(c * first, o * rest))
            yield Form(kind, (rank,))
        return
    if kind == "output":
        yield from (Form(kind, (rank,)) for rank in matrix_ranks(c * k, o))
        return
    if k == 1:
        return  # the same thing
    for share in _SHARES:
        if kind == "input":
            yield Form(kind, (_rounded(share * c * o * k / (c + o * k), min(c, o * k)),))
        else:
            # The same part of the channels on both sides.
            part = _equal_part(c, o, k, share)
            ranks = _rounded(part * c, c), _rounded(part * o, o)
            if ranks[0] < c and ranks[1] < o:  # else input or output does the same in two steps
                yield Form(kind, ranks)


def matrix_ranks(rows: int, columns: int) -> list[int]:
    """Ranks of a matrix with which its two factors are smaller, the largest first."""
    full, size = min(rows, columns), rows * columns
    ranks = [_rounded(share * size / (rows + columns), full) for share in _SHARES]
    return [r for r in dict.fromkeys(ranks) if r * (rows + columns) <= _MOST * size]


def sizes(layer: Layer) -> tuple[int, int, int]:
    """Input channels, outputs and kernel elements of a group."""
    return layer.columns // layer.kernel, layer.outputs // layer.groups, layer.kernel


def halves(layer: Layer) -> tuple[int, int]:
    """Elements of a kernel along its first axis, and along the others."""
    if layer.patches is None:
        return 1, 1
    kernel = layer.patches.kernel
    at = split_axis(kernel)
    return math.prod(kernel[:at]), math.prod(kernel[at:])


def split_axis(kernel: Sequence[int]) -> int:
    """The number of axes of a kernel up to the first that it has several elements along."""
    return next((i for i, n in enumerate(kernel, 1) if n > 1), len(kernel))


def _equal_part(c: int, o: int, k: int, share: float) -> float:
    """The part of both numbers of channels with which a Tucker form has a share of the weights.

    Its weights are part (c^2 + o^2) + part^2 c k o.
    """
    ends, core = c * c + o * o, c * k * o
    return (math.sqrt(ends**2 + 4 * core * share * core) - ends) / (2 * core)


def _rounded(rank: float, full: int) -> int:
    """A number of channels that kernels compute fast, 1 at least."""
    multiple = next(m for least, m in _MULTIPLES if full >= least)
    return min(max(round(rank / multiple) * multiple, min(multiple, full)), full)


def _weights(form: Form, layer: Layer) -> int:
    return sum(math.prod(shape) for shape in shapes(form, layer))


def shapes(form: Form, layer: Layer) -> list[tuple[int, ...]]:
    """Shapes of the factors of a group, in the order of the indices of its product."""
    c, o, k = sizes(layer)
    rank = form.ranks[0]
    if form.kind == "depthwise":
        return [(rank, c, k), (rank, c, o)]
    if form.kind == "spatial":
        first, rest = halves(layer)
        return [(c, first, rank), (rank, rest, o)]
    if form.kind == "input":
        return [(c, rank), (rank, k, o)]
    if form.kind == "output":
        return [(c, k, rank), (rank, o)]
    return [(c, rank), (rank, k, form.ranks[1]), (form.ranks[1], o)]


def fitted(form: Form, layer: Layer, metric: Metric, sweeps: int) -> Product:
    """The factors of a group that are closest to its best weights.

    Args:
        form: The form.
        layer: The layer.
        metric: Its moments and best weights.
        sweeps: How often each factor is fitted to the others.
    """
    product = start(form, layer, metric)
    if form.kind == "output":
        return product  # the best there is
    return product.fit(metric, sweeps)


def start(form: Form, layer: Layer, metric: Metric) -> Product:
    """Factors from singular value decompositions, weighted with what the channels carry."""
    c, o, k = sizes(layer)
    scale = np.sqrt(np.maximum(np.diag(metric.gram).reshape(c, k).mean(axis=1), 1e-300))
    whole = metric.target.reshape(c, k, o)
    rank = form.ranks[0]
    if form.kind == "depthwise":
        left = np.linalg.svd(whole, full_matrices=False)[0]
        kernels = left[:, :, :rank].transpose(2, 0, 1)
        return Product(("tck", "tco"), "cko", [kernels, np.zeros((rank, c, o))])
    if form.kind == "spatial":
        first, rest = halves(layer)
        flat = (whole * scale[:, None, None]).reshape(c * first, rest * o)
        left = _left(flat, rank).reshape(c, first, rank) / scale[:, None, None]
        return Product(("ckr", "rlo"), "cklo", [left, np.zeros((rank, rest, o))])
    if form.kind == "output":
        return _reduced(metric, rank, (c, k, o))
    flat = (whole * scale[:, None, None]).reshape(c, k * o)
    first_factor = _left(flat, rank) / scale[:, None]
    if form.kind == "input":
        return Product(("cr", "rko"), "cko", [first_factor, np.zeros((rank, k, o))])
    more = form.ranks[1]
    inner = _reduced(metric, more, (c, k, o)).factors[0]  # [c, k, more]
    core = np.linalg.lstsq(first_factor, inner.reshape(c, -1), rcond=None)[0]
    factors = [first_factor, core.reshape(rank, k, more), np.zeros((more, o))]
    return Product(("cr", "rks", "so"), "cko", factors)


def _left(matrix: Array, rank: int) -> Array:
    return np.asarray(np.linalg.svd(matrix, full_matrices=False)[0][:, :rank])


def _reduced(metric: Metric, rank: int, shape: tuple[int, int, int]) -> Product:
    """The best weights of a rank (reduced-rank regression; Izenman, 1975)."""
    c, k, _ = shape
    values, vectors = np.linalg.eigh(metric.target.T @ metric.pull)
    kept = vectors[:, np.argsort(-values)[:rank]]
    factors = [(metric.target @ kept).reshape(c, k, rank), kept.T]
    return Product(("ckr", "ro"), "cko", factors)
