"""Weights of zero, and the others such that they make up for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from graphopt import Context, Exactness, NotApplicable, Pass, Rewriter, ir
from graphopt.analyses import Cost
from graphopt.calibration import fitting
from graphopt.measure import Budget, Trial
from graphopt.passes.sharing.compact_storage import at_opset, store
from graphopt.passes.sparsity._parts import arranged, halved, optimal_parts, replaced
from graphopt.passes.sparsity._shares import Share, shares
from graphopt.pruning.batches import check_budget, split
from graphopt.reconstruct.layers import Layer, layers
from graphopt.reconstruct.obs_sparse import Zeros, magnitude
from graphopt.reconstruct.problem import Problem, too_large
from graphopt.reconstruct.rebuild import rebuild
from graphopt.runtime import Feeds

__all__ = ["Sparsify"]

Array = np.ndarray[Any, Any]

# Numbers without zeros that are worth a word, as a share of those that get some.
_OTHERS = 0.1


class Sparsify(Pass):
    """Make weights zero, let the others make up for it, and store what is left in fewer bytes.

    What it does: runs the samples through the model. Of the weights of each Conv, ConvTranspose,
    Gemm and MatMul those are made zero whose loss the others can make up for best, judged by the
    second moments of what the layer reads (Optimal Brain Surgeon), and the others become what least
    squares gives. Layers are fitted one after the other, from what the layers before it compute
    with their zeros to what the original computed. Layers that the outputs depend on less get more
    zeros: what zeros in one layer do to the outputs is measured. The weights are stored as 16-bit
    floats with a bit per zero (compact-storage), which ONNX Runtime decodes when it loads the
    model. The file becomes smaller; the model does not become faster.

    Exactness: LOSSY

    Needs: calibration data (--data), except for method=magnitude without min-sqnr and max-drop;
    ONNX Runtime. It keeps most quality after O2, which folds normalizations into weights.

    Options: ratio (fraction of zeros in all layers that get some; 0.5), n-m (at most N weights of
    every M input channels stay, as in 2:4, instead of a ratio), block (rows and columns of blocks
    of the weight, as a matrix of outputs by inputs, that are zero as a whole), method (obs;
    magnitude: the smallest weights become zero, and nothing makes up for it), ranking (global:
    layers get different ratios; local: the same; auto: global where there is a choice and more than
    one batch of samples), values
    (fp16: weights are rounded to 16 bits, for half the bytes; fp32), code (store the weights in
    fewer bytes), skip (patterns of names of layers' nodes or outputs, or operators, that stay),
    min-weights (smaller layers get no zeros), min-sqnr (least signal-to-noise ratio of the outputs,
    in dB), max-drop (largest share of predictions that may change, in percent), samples (how many
    to use, at most), threads (of an operator, when samples are run).

    Example: Conv(x, w) -> Conv(x, w'), half of w' being zero

    Declines when: there are no data, or no layers of 32-bit floats with constant weights of their
    own; for a layer, when its weights are few, too many to fit, shared with another node or named
    in skip, or its size is no multiple of N:M groups or blocks; the result is not as accurate as
    asked for. Weights stay uncoded where compact-storage declines.

    References: Hassibi and Stork (1992), "Optimal Brain Surgeon"; Frantar and Alistarh (2022),
    "Optimal Brain Compression"; Frantar and Alistarh (2023), "SparseGPT"; He et al. (2017),
    "Channel Pruning for Accelerating Very Deep Neural Networks", for fitting layer after layer;
    Mishra et al. (2021), "Accelerating Sparse Deep Neural Networks", for 2:4.
    """

    name = "sparsify"
    exactness = Exactness.LOSSY
    gated = False
    ratio: float | None = None
    n_m: str | None = None
    block: tuple[int, int] = (1, 1)
    method: Literal["obs", "magnitude"] = "obs"
    ranking: Literal["auto", "global", "local"] = "auto"
    values: Literal["fp16", "fp32"] = "fp16"
    code: bool = True
    skip: tuple[str, ...] = ()
    min_weights: int = 1024
    min_sqnr: float | None = None
    max_drop: float | None = None
    samples: int = 512
    threads: int = 2

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of bounds, or two exclude each other.
        """
        for name in ("samples", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be 1 or more, not {getattr(self, name)}")
        if self.min_weights < 0:
            raise ValueError(f"min-weights is 0 or more, not {self.min_weights}")
        _ = Budget(self.min_sqnr, self.max_drop)
        if self.n_m is not None and self.ratio is not None:
            raise ValueError("ratio and n-m both say how many zeros there are; give one")
        if self.ratio is not None and not 0 < self.ratio <= 0.95:
            raise ValueError(f"ratio is a fraction of zeros, in (0, 0.95], not {self.ratio}")
        if self.ranking == "global" and (self.n_m is not None or self.method == "magnitude"):
            raise ValueError("ranking=global needs method=obs and no n-m")
        _ = self.zeros

    @property
    def zeros(self) -> Zeros:
        """The zeros that are asked for.

        Raises:
            ValueError: They are impossible.
        """
        if self.n_m is None:
            return Zeros(0.5 if self.ratio is None else self.ratio, block=self.block)
        found = re.fullmatch(r"(\d+):(\d+)", self.n_m)
        n, m = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 < n < m:
            raise ValueError(f"n-m is how many of how many weights stay, as in 2:4, not {self.n_m}")
        return Zeros(1 - n / m, group=m, block=self.block)

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Change a copy, and take it over."""
        original = ir.clone(at_opset(model, ctx) if self.code else model)
        ir.infer_shapes(original)
        chosen = self._choose(original, ctx)
        if not chosen:
            raise NotApplicable("no layer can get zeros: " + self._reasons(original))
        budget = Budget(self.min_sqnr, self.max_drop)
        data = None if ctx.data is None else fitting(ctx.data, original)
        fit, aside = split(data, self.samples)
        if fit:
            check_budget(budget, aside)
        if not fit and (self.method == "obs" or budget != Budget()):
            raise NotApplicable(
                "needs calibration data (--data), to see which weights the outputs miss least; "
                "method=magnitude without min-sqnr and max-drop does without, and loses much more"
            )
        if self.method == "magnitude":
            changed = self._smallest(original, chosen, ctx)
        else:
            changed = self._fitted(original, chosen, fit, ctx)
        if fit:
            quality = Trial(original, aside or fit).quality(changed)
            ctx.details["quality"] = {**quality.to_json(), "aside": bool(aside)}
            why = None if budget == Budget() else budget.obstacle(quality)
            if why is not None:
                ctx.details["missed"] = f"with these zeros, {why}"
                raise NotApplicable(ctx.details["missed"])
            which = "that decided nothing" if aside else "calibrated on"
            ctx.remark(f"{quality} on {quality.samples} samples {which}")
            if (doubt := budget.doubt(quality)) is not None:
                ctx.remark(doubt)
        if not ctx.allow("sparsify"):
            return False
        self._tell(changed, chosen, ctx)
        if self.code:
            store(changed, ctx)
        ctx.rewriter().become(changed)
        ctx.stats.applied["sparsify-layer"] += len(chosen)
        return True

    def _choose(self, model: ir.Model, ctx: Context) -> set[str]:
        """Names of the layers that get zeros; the reasons of others are reported."""
        chosen: set[str] = set()
        for layer in layers(model):
            why = self._why_not(layer)
            if why is None:
                chosen.add(layer.name)
            else:
                ctx.decline("sparsify", why)
        for pattern in self.skip:
            if not any(_matches(layer, (pattern,)) for layer in layers(model)):
                ctx.remark(f"nothing matches {pattern!r}, which was to be skipped")
        return chosen

    def _reasons(self, model: ir.Model) -> str:
        found = dict.fromkeys(why for layer in layers(model) if (why := self._why_not(layer)))
        return "; ".join(found) or "none has constant weights of 32-bit floats"

    def _why_not(self, layer: Layer) -> str | None:
        groups, rows, columns = layer.matrix().shape
        weight = layer.node.inputs[1]
        if _matches(layer, self.skip):
            return "skip names it"
        if weight is None or ir.use_count(weight) > 1:
            return "its weights are used elsewhere, too"
        if groups * rows * columns < self.min_weights:
            return f"it has fewer than {self.min_weights} weights (min-weights)"
        if self.method == "obs" and (large := too_large(layer)) is not None:
            return large
        if self.zeros.group is not None and columns // layer.kernel % self.zeros.group:
            return f"its input channels are no groups of {self.zeros.group}"
        return self.zeros.why_not(rows, columns)

    def _smallest(self, original: ir.Model, chosen: set[str], ctx: Context) -> ir.Model:
        """The model without its smallest weights."""
        model = ir.clone(original)
        rw = Rewriter(model)
        for layer in layers(model):
            if layer.name in chosen:
                matrix = layer.matrix()
                order = arranged(matrix.shape[2], layer, self.zeros)
                for part in matrix:
                    part[:, order] = magnitude(part[:, order], self.zeros)
                layer.write(rw, self._stored(matrix, layer, ctx), None)
        rw.remove_initializers()
        return model

    def _fitted(
        self, original: ir.Model, chosen: set[str], batches: Sequence[Feeds], ctx: Context
    ) -> ir.Model:
        """The model with zeros, layer after layer."""
        given: dict[str, Share] = {}
        if self.ranking == "global" and len(batches) < 2:
            raise NotApplicable("ranking=global needs two batches of samples or more")
        if self.ranking != "local" and self.n_m is None and len(batches) > 1:
            given = shares(
                original, batches, lambda layer: layer.name in chosen, self.zeros, self.threads
            )
        model = ir.clone(original)

        def change(problem: Problem) -> Array:
            layer = problem.layer
            if layer.name not in chosen:
                return problem.optimum
            ratio = given[layer.name].ratio if given else self.zeros.ratio
            (found,) = optimal_parts(problem, self.zeros, (ratio,))
            k = found.shape[1] - int(layer.takes_bias)
            return replaced(problem, found, self._stored(found[:, :k], layer, ctx))

        fits = rebuild(
            original, model, batches, change,
            wanted=lambda layer: layer.name in chosen,
            only=lambda layer: not _matches(layer, self.skip), threads=self.threads,
        )  # fmt: skip
        noises = {name: dataclasses.asdict(share) for name, share in given.items()}
        ctx.details["fits"] = [dataclasses.asdict(f) | noises.get(f.name, {}) for f in fits]
        return model

    def _stored(self, weights: Array, layer: Layer, ctx: Context) -> Array:
        """Weights in the precision that they are stored in."""
        half = halved(weights) if self.values == "fp16" else weights
        if half is None:
            ctx.decline("store in 16 bits", "weights are too large or too small")
            ctx.remark("weights stay in 32 bits, as 16 would lose more than rounding", layer.output)
            return weights
        return half

    def _tell(self, changed: ir.Model, chosen: set[str], ctx: Context) -> None:
        counts = [
            (m.size, int((m == 0).sum()))
            for m in (layer.matrix() for layer in layers(changed) if layer.name in chosen)
        ]
        size, zero = (sum(each) for each in zip(*counts, strict=True))
        ctx.remark(f"{zero:,} of {size:,} weights in {len(counts)} layers are zero")
        ctx.details["weights"] = {"layers": len(counts), "weights": size, "zeros": zero}
        others = Cost(changed).parameters - size
        if others > _OTHERS * size:
            ctx.remark(f"{others:,} numbers belong to other layers and operators and stay")


def _matches(layer: Layer, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches an operator or a name of a layer."""
    nodes = [layer.node] if layer.adds is None else [layer.node, layer.adds]
    return any(ir.matches(node, patterns) for node in nodes)
