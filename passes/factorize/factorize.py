"""Layers as products of smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from graphopt.decompose import KINDS, Kind
from graphopt.passes.factorize._decompose import Decompose

__all__ = ["Factorize"]

Name = Literal["spatial", "input", "output", "tucker", "depthwise"]


class Factorize(Decompose):
    """Compute convolutions and matrix products as two or three smaller ones.

    What it does: runs O2. A convolution becomes one along the first axis and one along the others
    (spatial); fewer channels and the kernel on them (input); the kernel for fewer channels and all
    channels from these (output); or fewer channels on both sides (tucker). A matrix product becomes
    two of a smaller rank. Factors begin with singular value decompositions, weighted with what the
    channels carry, and are then fitted in turns to what the layer computed, judged by the second
    moments of what it reads; those of ``output`` are the best there are (reduced-rank regression).
    Which form and rank each layer gets, if any, follows from what they add to the outputs, and from
    the time that they take on the target. Layers are fitted one after the other, from what those
    before them compute now to what the original computed.

    Exactness: LOSSY

    Needs: calibration data (--data); ONNX Runtime.

    Options: macs, params, bytes, latency (the fraction that remains, one of them; macs of 0.75 if
    none is given), forms (which forms there are to choose from: spatial, input, output, tucker,
    and depthwise, which convert-depthwise explains; all of them but the last if none is given),
    payoff (what part of the macs saved has to be saved in measured time, too, where that is
    possible), whole (let layers beside shortcuts go whole, where that is the better choice), skip
    (patterns of names of layers' nodes or outputs, or operators, that stay),
    min-sqnr (least signal-to-noise ratio of the outputs, in dB), max-drop (largest share of
    predictions that may change, in percent), dry (only list layers, and what they would become),
    samples (how many to use, at most), threads (of an operator, when latency is measured).

    Example: Conv(x, w[64,64,3,3]) -> Conv(Conv(x, v[32,64,3,1]), h[64,32,1,3])

    Declines when: there are no data; no layer has constant 32-bit weights of its own and a smaller
    form; the goal is out of reach, or the result not as accurate as asked for; the result would be
    slower than the original.

    References: Jaderberg et al. (2014), "Speeding up Convolutional Neural Networks with Low Rank
    Expansions"; Zhang et al. (2016), "Accelerating Very Deep Convolutional Networks"; Kim et al.
    (2016), "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
    Applications", for Tucker-2; Izenman (1975), "Reduced-Rank Regression for the Multivariate
    Linear Model".
    """

    name = "factorize"
    usual = tuple(kind for kind in KINDS if kind != "depthwise")
    forms: tuple[Name, ...] = ()

    def kinds(self) -> Sequence[Kind]:
        """Forms that layers may take."""
        return self.forms or self.usual
