"""Structured pruning of channels."""

from __future__ import annotations

import dataclasses

from graphopt.measure import Goal
from graphopt.passes.pruning._prune import Prune
from graphopt.pruning import Options

__all__ = ["PruneChannels"]


class PruneChannels(Prune):
    """Remove the channels, neurons and hidden units that the outputs miss least.

    What it does: runs O2, then finds which channels of which tensors live and die together. In
    each group the channels go in the order in which the layers that read them miss them least
    (OBS); what the loss of some does to the outputs is measured, and so is the time that it saves
    on the target. Groups then lose channels, or whole layers beside shortcuts go, where least
    noise buys what was asked for. Layers are fitted one after the other, by least squares, to what
    the original computed, and the channels are cut out.

    Exactness: LOSSY

    Needs: calibration data (--data); ONNX Runtime. Without data: ranking=local or global,
    recover=false and a criterion of weights.

    Options: macs, params, bytes, latency, channels (the fraction that remains, one of them; macs of
    0.75 if none is given), criterion (which channels of a group go first: obs, l1, l2, median,
    bn-scale, activation, taylor, random), ranking (how losses are spread: measured, by noise at the
    outputs; global, by scores; local, the same share of each group), payoff (what part of the macs
    saved has to be saved in measured time, too, where that is possible), least (smallest share of a
    group that stays), round-to (what numbers of channels are multiples of), skip (patterns of names
    of values whose channels stay), whole (let layers beside shortcuts go whole), recover (fit the
    layers that stay), vary (fit them on samples with other ids, too, where inputs look up
    embeddings), min-sqnr (least signal-to-noise ratio of the outputs, in dB), max-drop (largest
    share of predictions that may change, in percent), dry (only list groups, what they would lose,
    and why others are frozen), samples (how many to use, at most), threads (of an operator, when
    latency is measured).

    Example: Conv(Relu(Conv(x, v)), w) -> Conv(Relu(Conv(x, v[:24])), w'[:, :24])

    Declines when: there are no data; no group may lose channels; the goal is out of reach, or the
    result not as accurate as asked for; the result would be slower than the original.

    References: Fang et al. (2023), "DepGraph: Towards Any Structural Pruning"; He et al. (2017),
    "Channel Pruning for Accelerating Very Deep Neural Networks"; Hassibi and Stork (1993), "Second
    Order Derivatives for Network Pruning: Optimal Brain Surgeon".
    """

    name = "prune-channels"
    kind = "channels"
    default = Goal("macs", 0.75)
    payoff: float = 0.67
    round_to: int | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of bounds, or there are several goals.
        """
        super().__post_init__()
        if not 0 <= self.payoff < 1:
            raise ValueError(f"payoff is a share, in [0, 1), not {self.payoff}")
        if self.round_to is not None and self.round_to < 1:
            raise ValueError(f"round-to has to be 1 or more, not {self.round_to}")

    def options(self) -> Options:
        """What the engine is told."""
        return dataclasses.replace(
            super().options(), payoff=self.payoff, multiple=self.round_to, whole=self.whole
        )
