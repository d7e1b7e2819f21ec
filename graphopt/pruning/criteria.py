"""How much channels matter: a score for each, by which those that go are chosen.

Scores compare the channels of one group. Between groups they compare after :func:`normalized`.
Reconstruction makes up for most of what a poor choice costs: with it the criteria lie close
together, and ``random`` is the baseline to beat.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels, End, Group
from graphopt.calibration import ChannelStats, Samples, collect
from graphopt.errors import NotApplicable
from graphopt.pruning.criteria_taylor import output_changes
from graphopt.runtime import Feeds

__all__ = ["CRITERIA", "Criterion", "Scores", "normalized"]

Array = np.ndarray[Any, Any]
Criterion = Literal["l1", "l2", "median", "bn-scale", "activation", "taylor", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
# Of these "taylor" makes many runs.
_SAMPLES = 64
_RECURRENT = ("GRU", "LSTM", "RNN")
Uses = dict[tuple[ir.Node, int, bytes], Array]
_WITHOUT = {
    "l1": "no constant weights make or read the channels of %{}",
    "l2": "no constant weights make or read the channels of %{}",
    "median": "no constant weights make the channels of %{}",
    "bn-scale": "no BatchNormalization scales the channels of %{} (fused ones are gone)",
    "activation": "the channels of %{} are read by nothing that is understood",
    "taylor": "the channels of %{} cannot be removed",
}


class Scores:
    """Scores of channels by any criterion; what several groups or criteria need is found once.

    ``l1``, ``l2``
        Norm of the weights of a channel: those that make it, and those that read it (Li et al.,
        "Pruning Filters for Efficient ConvNets", 2017; for coupled layers Fang et al., "DepGraph:
        Towards Any Structural Pruning", 2023).
    ``median``
        Sum of the distances of the weights that make a channel from those of the others: one near
        the geometric median can be replaced by them (He et al., "Filter Pruning via Geometric
        Median", 2019).
    ``bn-scale``
        Absolute scale of the BatchNormalization of a channel (Liu et al., "Learning Efficient
        Convolutional Networks through Network Slimming", 2017).
    ``activation``
        Norm of the weights that read a channel times the root of its mean square on samples (Sun et
        al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), 2023).
    ``taylor``
        Energy of the first-order change of the model's outputs when a channel is scaled down, in
        units of the outputs' energy: Molchanov et al., "Importance Estimation for Neural Network
        Pruning" (2019), with the squared error of the outputs as the loss, since there are no
        labels. Derivatives are finite differences; see
        :func:`~graphopt.pruning.criteria_taylor.output_changes`.
    ``random``
        Random numbers, the baseline.

    Args:
        channels: The analysis of the model.
        data: Samples of its inputs; ``activation`` and ``taylor`` need some.
        makers_only: Let ``l1`` and ``l2`` count only the weights that make a channel.
        runs: Runs of the model, at most, that ``taylor`` spends on a group. It uses 64 samples.
        seed: Of ``random``, and of the directions of ``taylor``.
    """

    def __init__(
        self,
        channels: Channels,
        *,
        data: Samples | None = None,
        makers_only: bool = False,
        runs: int = 64,
        seed: int = 0,
    ) -> None:
        self.channels, self.data = channels, data
        self.makers_only, self.runs, self.seed = makers_only, runs, seed
        self._kept: dict[Criterion, Array] = {}

    def of(self, group: Group, criterion: Criterion) -> Array:
        """Scores of the channels of a group; those with the least go first.

        Args:
            group: A group whose channels may be removed.
            criterion: Which.

        Returns:
            float64 ``[channels]``, none negative.

        Raises:
            NotApplicable: The criterion does not apply to the group, or needs samples.
            CalibrationError: The samples do not fit the model.
        """
        if criterion == "random":
            name = zlib.crc32(group.name.encode())
            return np.random.default_rng((self.seed, name)).random(len(group.classes))
        if criterion == "median":
            return self._median(group)
        if criterion not in self._kept:
            self._kept[criterion] = self._all(criterion)
        found: Array = self._kept[criterion][group.classes]
        if np.isnan(found).any():
            raise NotApplicable(_WITHOUT[criterion].format(group.name))
        return found

    def _all(self, criterion: Criterion) -> Array:
        """Scores of all classes; NaN for those that a criterion says nothing about."""
        if criterion == "l1":
            return self._weights(1)
        if criterion == "l2":
            return np.sqrt(self._weights(2))
        if criterion == "bn-scale":
            return self._scales()
        if self.data is None:
            raise NotApplicable(f"the criterion {criterion} needs samples (--data)")
        if criterion == "activation":
            return self._activation(self.data)
        return output_changes(self.channels, _some(self.data), runs=self.runs, seed=self.seed)

    def _weights(self, power: int) -> Array:
        """Sum of powers of the weights of each class."""
        uses = self._makers()
        if not self.makers_only:
            uses |= self._readers()
        found = np.full(self.channels.count, np.nan)
        for (node, index, _), factor in uses.items():
            _add(found, factor, _powers(node, index, power))
        return found

    def _makers(self) -> Uses:
        return {_use(m.node, m.index, m.factor): m.factor for m in self.channels.makers}

    def _readers(self) -> Uses:
        """Constants that channels are multiplied with and summed up, and the labels of these."""
        found: Uses = {}
        for end in self.channels.ends:
            for index, value in enumerate(end.node.inputs):
                if index > 2 and end.node.op_type in _RECURRENT:
                    break  # biases and states
                if (ir.rank(value) or 0) < 2:
                    continue
                for factor in self.channels.constants.get((end.node, index), ()):
                    if np.isin(factor, end.factor).any():
                        found[_use(end.node, index, factor)] = factor
        return found

    def _scales(self) -> Array:
        found = np.full(self.channels.count, np.nan)
        for (node, index), factors in self.channels.constants.items():
            if node.op_type == "BatchNormalization" and index == 1:
                for factor in factors:
                    _add(found, factor, _powers(node, index, 1))
        return found

    def _activation(self, data: Samples) -> Array:
        """Norms of the weights that read a class, times the norm of what they read, summed."""
        count = self.channels.count
        # Neither recurrent weights, where hidden units end besides, nor values inside of subgraphs
        # are seen.
        ends = [e for e in self.channels.ends if _seen(e, self.channels.model.graph)]
        watch: dict[tuple[str, int], ChannelStats] = {}
        for end in ends:
            watch[_watched(end)] = ChannelStats(_axis(end.factor))
        by_name: dict[str, list[ChannelStats]] = {}
        for (name, _), stats in watch.items():
            by_name.setdefault(name, []).append(stats)
        seen = {
            (name, stats.axis): stats
            for name, found in collect(self.channels.model, by_name, data).items()
            for stats in found
            if isinstance(stats, ChannelStats)
        }
        gains: dict[ir.Node, Array] = {}
        for (node, index, _), factor in self._readers().items():
            _add(gains.setdefault(node, np.full(count, np.nan)), factor, _powers(node, index, 2))
        scores = np.full(count, np.nan)
        for end in ends:
            stats, ids = seen[_watched(end)], end.factor.reshape(-1)
            energy = np.bincount(ids, stats.squares / stats.count, count)
            here = np.unique(ids)
            # What has no weights, such as a sum over the channels, reads each with a weight of 1.
            gain = np.nan_to_num(gains[end.node][here], nan=1.0) if end.node in gains else 1.0
            scores[here] = np.nan_to_num(scores[here]) + np.sqrt(gain * energy[here])
        return scores

    def _median(self, group: Group) -> Array:
        rows = [_rows(m.node, m.index, m.factor, group.classes) for m in self.channels.makers]
        x = np.concatenate([r for r in rows if r is not None] or [np.empty((0, 0))], axis=1)
        if not x.size:
            raise NotApplicable(_WITHOUT["median"].format(group.name))
        squares = np.einsum("ij,ij->i", x, x)
        apart = squares[:, None] + squares - 2 * (x @ x.T)
        np.fill_diagonal(apart, 0.0)
        return np.asarray(np.sqrt(np.maximum(apart, 0.0)).sum(axis=1))


def normalized(scores: Array) -> Array:
    """Scores in units of their mean, so that those of several groups compare (as in DepGraph)."""
    mean = scores.mean()
    return np.asarray(scores / mean if mean > 0 else np.ones_like(scores))


def _some(data: Samples) -> Iterator[Feeds]:
    """Batches of the first samples."""
    left = _SAMPLES
    for feeds in data:
        yield feeds
        arrays = (a for a in feeds.values() if isinstance(a, np.ndarray) and a.ndim)
        left -= max(map(len, arrays), default=1)
        if left <= 0:
            return


def _use(node: ir.Node, index: int, factor: Array) -> tuple[ir.Node, int, bytes]:
    """What tells one use of a constant from another: labels along an axis count once."""
    return node, index, str(factor.shape).encode() + factor.tobytes()


def _seen(end: End, graph: ir.Graph) -> bool:
    value = end.node.inputs[end.index]
    node = None if value is None else value.producer()
    return node is not None and node.graph is graph


def _watched(end: End) -> tuple[str, int]:
    value = end.node.inputs[end.index]
    assert value is not None
    return value.name or "", _axis(end.factor)


def _axis(factor: Array) -> int:
    """The axis that labels go along."""
    return int(np.argmax(factor.shape))


def _powers(node: ir.Node, index: int, power: int) -> Array:
    """Powers of the absolute values of a constant input."""
    return np.abs(_numbers(node.inputs[index])) ** power


def _numbers(value: ir.Value | None) -> Array:
    """Numbers of a constant in float64, also behind conversions and DequantizeLinear."""
    data = ir.array(value)
    if data is not None:
        return data.astype(np.float64)
    node = None if value is None else value.producer()
    assert node is not None
    inner = node.inputs[0]
    quantizer = None if inner is None else inner.producer()
    if quantizer is not None and quantizer.op_type == "QuantizeLinear":
        return _numbers(quantizer.inputs[0])
    found = _numbers(inner)
    if node.op_type != "DequantizeLinear":
        return found
    shape = [1] * found.ndim
    shape[int(ir.attr(node, "axis", 1)) % found.ndim] = -1
    scale, *zero = (_numbers(v) for v in node.inputs[1:] if v is not None)
    spread = [v.reshape(shape if v.ndim else ()) for v in (scale, *zero)]
    return np.asarray((found - sum(spread[1:])) * spread[0])


def _add(sums: Array, factor: Array, values: Array) -> None:
    """Add values to those of their classes; ``sums`` has NaN where there were none before."""
    missing = values.ndim - factor.ndim
    shape = (1,) * missing + factor.shape
    over = tuple(k for k, n in enumerate(shape) if n == 1)
    found = np.bincount(factor.reshape(-1), values.sum(axis=over).reshape(-1), len(sums))
    here = np.unique(factor)
    sums[here] = np.nan_to_num(sums[here]) + found[here]


def _rows(node: ir.Node, index: int, factor: Array, classes: Array) -> Array | None:
    """Weights that make each of some classes, ``[classes, weights]``; None where they make none."""
    ids = factor.reshape(-1)
    each = [np.flatnonzero(ids == c) for c in classes]
    most = max(map(len, each))
    if not most:
        return None
    weights = _numbers(node.inputs[index])
    lines = np.moveaxis(weights, _axis(factor), 0).reshape(len(ids), -1)
    out = np.zeros((len(classes), most, lines.shape[1]))
    for row, places in zip(out, each, strict=True):
        row[: len(places)] = lines[places]
    return out.reshape(len(classes), -1)
