"""Convolutions as sums of depthwise separable ones."""

from __future__ import annotations

from graphopt.passes.factorize._decompose import Decompose

__all__ = ["ConvertDepthwise"]


class ConvertDepthwise(Decompose):
    """Compute convolutions as sums of depthwise convolutions, each followed by a pointwise one.

    What it does: runs O2. A kernel of any size, of 1 to 3 axes, is a sum of as many depthwise and
    pointwise kernels as it has elements, and a few of them are nearly the same (network
    decoupling). Their weights begin with a singular value decomposition for each input channel, and
    are then fitted, pointwise and depthwise in turns, to what the layer computed, judged by the
    second moments of what it reads. How many terms each layer gets, if any, follows from what they
    add to the outputs, and from the time that they take on the target. Layers are fitted one after
    the other, from what those before them compute now to what the original computed. Terms are
    convolutions of their own, added up or concatenated, whichever is faster: one grouped
    convolution of several kernels per channel is slower than the original.

    Exactness: LOSSY

    Needs: calibration data (--data); ONNX Runtime.

    Options: macs, params, bytes, latency (the fraction that remains, one of them; macs of 0.75 if
    none is given), payoff (what part of the macs saved has to be saved in measured time, too, where
    that is possible), whole (let layers beside shortcuts go whole, where that is the better
    choice), skip (patterns of names of layers' nodes or outputs, or operators, that
    stay), min-sqnr (least signal-to-noise ratio of the outputs, in dB), max-drop (largest share of
    predictions that may change, in percent), dry (only list layers, and what they would become),
    samples (how many to use, at most), threads (of an operator, when latency is measured).

    Example: Conv(x, w[64,64,3,3]) -> Add(Conv(Conv(x, d0[64,1,3,3]), p0[64,64,1,1]), Conv(Conv(x,
    d1), p1))

    Declines when: there are no data; no convolution has a kernel of several elements and constant
    32-bit weights of its own; the goal is out of reach, or the result not as accurate as asked for;
    the result would be slower than the original.

    References: Guo et al. (2018), "Network Decoupling: From Regular to Depthwise Separable
    Convolutions"; He et al. (2017), "Channel Pruning for Accelerating Very Deep Neural Networks",
    for fitting layer after layer.
    """

    name = "convert-depthwise"
    usual = ("depthwise",)
