"""Post-training quantization to 8-bit integers."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from graphopt import Context, Exactness, NotApplicable, Pass, UnsupportedFeature, ir
from graphopt.calibration import METHODS, fitting
from graphopt.measure import Budget
from graphopt.passes.cleanup import DeduplicateInitializers
from graphopt.passes.legalize import LowerOps
from graphopt.passes.quantize.channels_last import ChannelsLast
from graphopt.passes.quantize.lower_qdq import LowerQdq
from graphopt.passes.quantize.pad_channels import PadChannels
from graphopt.quant import Options, quantize
from graphopt.targets import Scheme

__all__ = ["QuantizeInt8"]

_OPSET = 13  # scales per channel
_INTEGER_OPS = frozenset(
    {
        "ConvInteger", "DequantizeLinear", "GatherBlockQuantized", "MatMulInteger",
        "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QGemm", "QuantizeLinear",
    }
)  # fmt: skip

Method = Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse", "distribution"]


class QuantizeInt8(Pass):
    """Compute on 8-bit integers what the target computes faster so, accurately enough.

    What it does: runs the samples through the model and finds scales for activations and weights.
    Channels are equalized; for each activation several ranges are tried, and the one that changes
    the outputs least is kept; weights are rounded so that errors make up for each other (GPTQ), and
    biases put means back. Every kernel is timed in floating point and on integers on the target,
    and what quantizing each tensor does to the outputs is measured. A minimum cut of the graph then
    divides it into nodes that compute on integers and nodes that stay, at several prices of noise.
    The divisions are timed and judged whole, on samples that chose nothing, and the best is
    written, if it is faster than the original. Products with constant weights (MatMul, Gemm, LSTM)
    may be quantized dynamically instead, with activations smoothed first (SmoothQuant).

    Exactness: LOSSY

    Needs: calibration data (--data), except for the dynamic form; ONNX Runtime.

    Options: form (auto: what is faster, node by node; static; dynamic), calibrate (auto tries
    several ranges for each activation; the others are methods for all), percentile (share of values
    kept, in percent, by the method of that name), per-channel (a scale for each output channel of
    weights, where the target has kernels for it), rounding (of weights: optimal, by what their
    errors do to outputs, or nearest), equalize (the ranges of channels first), spelling (qdq;
    qoperator: QLinearConv and its like; auto: what the target runs fastest), choose (measured, or
    all nodes that have a kernel), min-sqnr (least signal-to-noise ratio of the outputs, in dB),
    max-drop (largest share of predictions that may change, in percent), skip (patterns of values
    that nodes compute, names of nodes, or operators, that stay as they are), samples (how many to
    use, at most), threads (of an operator, when latency is measured), debug (report every tensor).

    Example: Relu(Conv(x, w, b)) -> DequantizeLinear(QuantizeLinear(Conv(DequantizeLinear(
    QuantizeLinear(x)), DequantizeLinear(w'), DequantizeLinear(b'))))

    Declines when: there are no data; the target has no integer kernels for any node; the result
    would not be faster than the original, or not as accurate as asked for.

    References: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference"; Nagel et al. (2019), "Data-Free Quantization"; Frantar et
    al. (2022), "GPTQ"; Xiao et al. (2022), "SmoothQuant".
    """

    name = "quantize-int8"
    exactness = Exactness.LOSSY
    gated = False
    form: Literal["auto", "static", "dynamic"] = "auto"
    calibrate: Method = "auto"
    percentile: float = 99.999
    per_channel: bool = True
    rounding: Literal["optimal", "nearest"] = "optimal"
    equalize: bool = True
    spelling: Literal["auto", "qdq", "qoperator"] = "auto"
    choose: Literal["measured", "all"] = "measured"
    min_sqnr: float | None = None
    max_drop: float | None = None
    skip: tuple[str, ...] = ()
    threads: int = 1
    samples: int = 1024
    debug: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of bounds.
        """
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile is in (50, 100], not {self.percentile}")
        for name in ("threads", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be 1 or more, not {getattr(self, name)}")
        _ = Budget(self.min_sqnr, self.max_drop)

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Quantize a copy, and take it over if it is better."""
        scheme = ctx.target.scheme
        if scheme is None:
            raise NotApplicable(f"the target {ctx.target.name} wants no integers")
        if _is_quantized(model):
            raise NotApplicable(
                "the model is quantized already; the pipeline repair brings such models into the "
                "form that the target computes fast"
            )
        if not self.per_channel:
            weight = dataclasses.replace(scheme.weight, granularity="tensor")
            scheme = dataclasses.replace(scheme, weight=weight)
        data = None if ctx.data is None else fitting(ctx.data, model)
        source = ir.clone(_at_opset(model))
        ir.infer_shapes(source)
        # In floating point, pooling and views that could compute on integers would part the graph.
        LowerOps(integer=True).run(source, Context(source, ctx.target))
        found = quantize(
            source, ctx.target, scheme, data, self._options(),
            finish=lambda m: self._finish(m, ctx, scheme), executor=ctx.executor, cache=ctx.cache,
        )  # fmt: skip
        ctx.details.update(found.details)
        for pattern in found.unmatched:
            ctx.remark(f"nothing matches {pattern!r}, which was to be skipped")
        if found.model is None:
            if self._options().budget != Budget():
                ctx.details["missed"] = found.reason
            raise NotApplicable(found.reason)
        if not ctx.allow("quantize"):
            return False
        rw = ctx.rewriter()
        rw.become(found.model)
        ctx.remark(found.reason)
        if "samples" in found.details:
            ctx.remark(
                "the first {used:,} of {given:,} samples were used".format(
                    **found.details["samples"]
                )
            )
        ctx.stats.applied["quantize"] += 1
        return True

    def _options(self) -> Options:
        method: tuple[str, dict[str, Any]] | None = None
        if self.calibrate != "auto":
            assert self.calibrate in METHODS
            share = {"percentile": self.percentile} if self.calibrate == "percentile" else {}
            method = (self.calibrate, share)
        return Options(
            form=self.form,
            method=method,
            rounding=self.rounding == "optimal",
            equalize=self.equalize,
            measured=self.choose == "measured",
            skip=self.skip,
            budget=Budget(self.min_sqnr, self.max_drop),
            samples=self.samples,
            threads=self.threads,
            debug=self.debug,
        )

    def _finish(self, model: ir.Model, ctx: Context, scheme: Scheme) -> None:
        """Bring a quantized copy into the spelling that the target runs fastest."""
        ir.infer_shapes(model)
        spelling = scheme.spelling if self.spelling == "auto" else self.spelling
        lowering = (LowerQdq(), ChannelsLast(), PadChannels()) if spelling == "qoperator" else ()
        inner = Context(model, ctx.target)
        for each in (*lowering, DeduplicateInitializers()):
            try:
                each.run(model, inner)
            except NotApplicable:
                continue  # a target without contributed operators runs what is there already
            ir.infer_shapes(model)


def _at_opset(model: ir.Model) -> ir.Model:
    present = ir.opset(model)
    if present >= _OPSET:
        return model
    try:
        return ir.convert_opset(model, _OPSET)
    except UnsupportedFeature as e:
        raise NotApplicable(f"needs opset {_OPSET}, the model has {present}: {e}") from e


def _is_quantized(model: ir.Model) -> bool:
    return any(
        n.op_type in _INTEGER_OPS or n.op_type.startswith(("QLinear", "DynamicQuantize"))
        for n in ir.all_nodes(model)
    )
