"""Structured pruning of channels."""

from __future__ import annotations

from graphopt import Context, Exactness, Pass, ir
from graphopt.passes.pruning import _engine
from graphopt.pruning import Goal

__all__ = ["PruneChannels"]


class PruneChannels(Pass):
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
    exactness = Exactness.LOSSY
    gated = False
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    channels: float | None = None
    criterion: _engine.Criterion = "obs"
    ranking: _engine.Ranking = "measured"
    payoff: float = 0.67
    least: float = 0.1
    round_to: int | None = None
    skip: tuple[str, ...] = ()
    whole: bool = True
    recover: bool = True
    vary: bool = True
    min_sqnr: float | None = None
    max_drop: float | None = None
    dry: bool = False
    samples: int = 512
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of bounds, or there are several goals.
        """
        _engine.checked(self)

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Prune a copy, and take it over if the goals are met."""
        return _engine.run(self, "channels", Goal("macs", 0.75), model, ctx)
