"""How fast a model's outputs change with each channel, by finite differences."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.errors import CalibrationError, NotApplicable
from graphopt.measure import square
from graphopt.pruning.cut import nodes_of
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds, open_session

__all__ = ["gated", "output_changes"]

Array = np.ndarray[Any, Any]
# Far above the rounding of float32, far below what moves many units over the kink of a Relu.
_STEP = 1 / 64


def output_changes(
    channels: Channels, batches: Iterable[Feeds], *, runs: int = 64, seed: int = 0
) -> Array:
    """Energy of the derivative of the outputs by a factor of each channel.

    Where channel c is multiplied by ``1 + t[c]``, the outputs change by ``sum(t[c] * J[c])`` to
    first order; found is ``|J[c]|**2`` in units of the outputs' energy, the mean over the outputs.
    A run of the model takes a step of random sign for all channels of a group at once. With as many
    runs as channels the signs are orthogonal, and the result exact; with fewer, products of
    different runs give an estimate without bias, whose error is about the group's total divided by
    the number of runs.

    Args:
        channels: The analysis of the model.
        batches: Inputs.
        runs: Runs on each batch, at most, for one group.
        seed: Of the signs.

    Returns:
        float64 ``[count]``, NaN for classes of no group that can be pruned.

    Raises:
        CalibrationError: There are no batches, or an output is not finite.
        NotApplicable: Channels end in integers, in a quantized model.
        ValueError: There are less than 2 runs.
    """
    if runs < 2:
        raise ValueError(f"differences take 2 runs at least, not {runs}")
    groups = [g for g in channels.groups if g.reason is None]
    signs = [_signs(len(g.classes), runs, (seed, zlib.crc32(g.name.encode()))) for g in groups]
    model, gate = gated(channels)
    outputs = [v.name or "" for v in channels.model.graph.outputs]
    energy = dict.fromkeys(outputs, 0.0)
    grams = [{o: np.zeros((len(s), len(s))) for o in outputs} for s in signs]
    with open_session(model, optimize=True, threads=1) as session:
        for feeds in batches:
            gates = np.ones(channels.count, np.float32)
            base = _finite(session.run({**feeds, gate: gates}))
            for name, value in base.items():
                energy[name] += square(value)
            for group, steps, gram in zip(groups, signs, grams, strict=True):
                moved: dict[str, list[Array]] = {name: [] for name in base}
                for step in steps:
                    at = gates.copy()
                    at[group.classes] += _STEP * step
                    found = _finite(session.run({**feeds, gate: at}))
                    for name, value in found.items():
                        moved[name].append((value - base[name]).reshape(-1) / _STEP)
                for name, rows in moved.items():
                    x = np.stack(rows)
                    gram[name] += x @ x.T
    if not any(energy.values()):
        raise CalibrationError("there are no samples, or all outputs are 0 on them")
    used = [o for o in outputs if energy[o]]
    changes = np.full(channels.count, np.nan)
    for group, steps, gram in zip(groups, signs, grams, strict=True):
        mean = np.asarray(sum(gram[o] / energy[o] for o in used) / len(used))
        changes[group.classes] = _energies(steps, mean)
    return changes


def gated(channels: Channels) -> tuple[ir.Model, str]:
    """A copy of a model that multiplies every channel, where it ends, by an input of its own.

    Args:
        channels: The analysis of the model.

    Returns:
        The copy, and the name of its additional input: a factor for each class, float32
        ``[count]``.

    Raises:
        NotApplicable: Channels end in integers, in a quantized model.
    """
    model = ir.clone(channels.model)
    rw = Rewriter(model)
    gates = ir.Value(
        name=rw.fresh("gates"),
        shape=ir.Shape([channels.count]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    model.graph.inputs.append(gates)
    nodes = nodes_of(channels, model)
    for end in channels.ends:
        if not channels.free[end.factor].any():
            continue
        node = nodes[end.node]
        value = node.inputs[end.index]
        assert value is not None
        if value.dtype is None or not value.dtype.is_floating_point():
            raise NotApplicable(f"%{value.name} holds no floats, so that nothing is derived by it")
        with rw.at(node):
            factor = rw.op("Gather", gates, rw.const(end.factor.astype(np.int64)))
            if value.dtype != ir.DataType.FLOAT:
                factor = rw.op("Cast", factor, to=int(value.dtype))
            rw.set_input(node, end.index, rw.op("Mul", value, factor))
    return model, gates.name or ""


def _signs(count: int, runs: int, seed: tuple[int, int]) -> Array:
    """Directions, ``[runs, count]``: orthogonal columns where the runs suffice."""
    size = 1 << max(count - 1, 0).bit_length()
    if max(size, 2) > runs:
        return np.random.default_rng(seed).choice([-1.0, 1.0], (runs, count))
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])  # Sylvester's Hadamard matrices
    return np.asarray(found[:, :count])


def _energies(signs: Array, gram: Array) -> Array:
    """Squared lengths of what the signs were multiplied with, of products of the sums."""
    runs, count = signs.shape
    whole = np.einsum("kc,kl,lc->c", signs, gram, signs, optimize=True)
    if count <= runs and np.allclose(signs.T @ signs, runs * np.eye(count)):
        return np.asarray(np.maximum(whole, 0.0) / runs**2)
    # Products of a run with itself have all channels' lengths in them.
    return np.asarray(np.maximum((whole - np.trace(gram)) / (runs * (runs - 1)), 0.0))


def _finite(found: dict[str, Any]) -> dict[str, Array]:
    floats = {
        n: v.astype(np.float64)
        for n, v in found.items()
        if isinstance(v, np.ndarray) and v.dtype.kind == "f"
    }
    for name, value in floats.items():
        if not np.isfinite(value).all():
            raise CalibrationError(f"output {name!r} is not finite, so it has no derivative")
    return floats
