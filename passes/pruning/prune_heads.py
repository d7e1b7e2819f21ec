"""Structured pruning of attention heads."""

from __future__ import annotations

from graphopt.measure import Goal
from graphopt.passes.pruning._prune import Prune

__all__ = ["PruneHeads"]


class PruneHeads(Prune):
    """Remove the attention heads that the outputs miss least.

    What it does: finds heads as the batch axis of products of activations, through reshapes,
    transposes and, where several heads of queries share one of keys and values, through what
    repeats it; those go together. The rest is as for prune-channels.

    Exactness: LOSSY

    Needs: calibration data (--data); ONNX Runtime. Without data: ranking=local or global,
    recover=false and a criterion of weights.

    Options: channels (the fraction of heads that remains; 0.8 if no goal is given), macs, params,
    bytes, latency (the fraction that remains), criterion (which heads of a layer go first: obs,
    l1, l2, activation, taylor, random), ranking (measured, by noise at the outputs; global, by
    scores; local, the same share of each layer), least (smallest share of the heads of a layer that
    stays), skip (patterns of names of values whose heads stay), recover (fit the layers that stay),
    vary (fit them on samples with other ids, too, where inputs look up embeddings), min-sqnr (least
    signal-to-noise ratio of the outputs, in dB), max-drop (largest share of predictions that may
    change, in percent), dry (only list layers, what they would lose, and why others are frozen),
    samples (how many to use, at most), threads (of an operator, when latency is measured).

    Example: 12 heads of 32 channels -> 10 heads of 32 channels

    Declines when: there are no data; there are no heads, or they are inside of one fused operator;
    the goal is out of reach, or the result not as accurate as asked for; the result would be slower
    than the original.

    References: Michel et al. (2019), "Are Sixteen Heads Really Better than One?"; Kwon et al.
    (2022), "A Fast Post-Training Pruning Framework for Transformers".
    """

    name = "prune-heads"
    kind = "heads"
    default = Goal("channels", 0.8)
