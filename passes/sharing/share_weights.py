"""Weights of few values, chosen such that outputs change least."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graphopt import Context, Exactness, NotApplicable, Pass, ir
from graphopt.calibration import fitting
from graphopt.measure import Budget, Trial
from graphopt.passes.sharing._constants import Constant, constants
from graphopt.passes.sharing._levels import Choice, Curves, uniform
from graphopt.passes.sharing._similar import channels, merge
from graphopt.passes.sharing._tell import tell, tell_misnamed
from graphopt.passes.sharing._write import written
from graphopt.passes.sharing.compact_storage import at_opset, store, why_uncoded
from graphopt.pruning.batches import check_budget, split
from graphopt.reconstruct.rebuild import Fit
from graphopt.runtime import Feeds
from graphopt.sharing.similar import Distance

__all__ = ["ShareWeights"]

_ENTRIES = 16
# Distances that are tried, each half of the one before, until a budget is kept.
_HALVINGS = 3
# Within so many dB a ratio is the one that was asked for; it is asked for so much more at most.
_CLOSE, _MOST = 0.5, 6.0


class ShareWeights(Pass):
    """Let the numbers of each constant be few different ones, and store which, not what, they are.

    What it does: runs the samples through the model. The weights of each Conv, Gemm and MatMul take
    one of a few values each, which are kept in a book: k-means gives first values; weights take the
    nearest one column by column, and those to come make up for the error, judged by the second
    moments of what the layer reads; values and places are then refined in turns by least squares.
    Layers are fitted one after the other, from what the layers before it compute with their few
    values to what the original computed. Other large constants (embeddings, weights that several
    nodes read, recurrent ones) get the values of k-means, once for all that read them; integers of
    quantized models get integers. Zeros stay zeros where a quarter of a constant or more is. Books
    and packed places are stored (compact-storage), which ONNX Runtime decodes when it loads the
    model. The file becomes smaller; the model does not become faster.

    Exactness: LOSSY

    Needs: ONNX Runtime; calibration data (--data), without which all constants get the values of
    k-means, which loses much more. It keeps most quality after O2, which folds normalizations into
    weights. Zeros stay where sparsify leaves weights uncoded (code=false).

    Options: entries (values of a book, 2 to 256; 16), bytes (share of the model's bytes that may
    stay, instead of a number of entries: constants that the outputs depend on less get fewer
    values, measured with each shared alone), sqnr (ratio of signal to noise at the outputs, in dB,
    instead of entries or bytes: as few bytes as it takes), blocks (output channels that share a
    book; 0 for all of a constant; by default 0, and with bytes or sqnr what is best), vector
    (elements of the vectors that embeddings and other constants that are not fitted consist of,
    entries being of vectors then: product quantization; 1), similar (distance below which constants
    of one shape become one, and output channels of a layer alike; with min-sqnr or max-drop half of
    it and so on where too much is lost; none by default), distance (euclidean: norm of the
    difference in units of the norm; cosine), skip (patterns of names of constants, of names or
    outputs of nodes, or operators, that stay), min-weights (smaller constants stay), min-sqnr
    (least signal-to-noise ratio of the outputs, in dB), max-drop (largest share of predictions that
    may change, in percent), samples (how many to use, at most), threads (of an operator, when
    samples are run), code (store the weights in fewer bytes), dry (only report).

    Example: Conv(x, w) -> Conv(x, w'), where w' has 16 different values

    Declines when: there are no constants of enough numbers in two dimensions or more; bytes are
    fewer than the coarsest values take; for a constant, when it has few values already, NaN or
    infinity, is named in skip, or is read by other operators than those that multiply with it or
    pick rows of it; the result is not as accurate as asked for; with code, models for
    the target are not optimized by ONNX Runtime, so that it would decode codes in every run.

    References: Han et al. (2016), "Deep Compression"; Frantar et al. (2022), "GPTQ"; Egiazarian et
    al. (2024), "Extreme Compression of Large Language Models via Additive Quantization", for
    refining values and places in turns; Jégou et al. (2011), "Product Quantization for Nearest
    Neighbor Search"; He et al. (2017), "Channel Pruning for Accelerating Very
    Deep Neural Networks", for fitting layer after layer.
    """

    name = "share-weights"
    exactness = Exactness.LOSSY
    gated = False
    entries: int | None = None
    bytes: float | None = None
    sqnr: float | None = None
    blocks: int | None = None
    vector: int = 1
    similar: float | None = None
    distance: Distance = "euclidean"
    skip: tuple[str, ...] = ()
    min_weights: int = 1024
    min_sqnr: float | None = None
    max_drop: float | None = None
    samples: int = 512
    threads: int = 2
    code: bool = True
    dry: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of bounds, or two exclude each other.
        """
        for name in ("samples", "threads", "vector"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be 1 or more, not {getattr(self, name)}")
        if self.min_weights < 0:
            raise ValueError(f"min-weights is 0 or more, not {self.min_weights}")
        _ = Budget(self.min_sqnr, self.max_drop)
        given = [n for n in ("entries", "bytes", "sqnr") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say how many values there are; give one")
        if self.entries is not None and not 2 <= self.entries <= 256:
            raise ValueError(f"entries are 2 to 256 values, not {self.entries}")
        if self.bytes is not None and not 0 < self.bytes < 1:
            raise ValueError(f"bytes is a share of the model's bytes, in (0, 1), not {self.bytes}")
        if self.similar is not None and not 0 < self.similar < 1:
            raise ValueError(f"similar is a distance, in (0, 1), not {self.similar}")
        if self.blocks is not None and self.blocks < 0:
            raise ValueError(f"blocks are of 1 or more channels, or 0 for all, not {self.blocks}")

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Change a copy, and take it over."""
        why = why_uncoded(ctx.target) if self.code else None
        if why is not None:
            raise NotApplicable(f"{why}; code=false shares weights nevertheless")
        original = ir.clone(at_opset(model, ctx) if self.code else model)
        ir.infer_shapes(original)
        budget = Budget(self.min_sqnr, self.max_drop)
        data = None if ctx.data is None else fitting(ctx.data, original)
        fit, aside = split(data, self.samples)
        tell_misnamed(original, self.skip, ctx)
        found = self._constants(original, fit, ctx)
        if not found:
            declined = dict.fromkeys(each.partition(": ")[2] for each in ctx.stats.declined)
            reasons = "; ".join(declined) or "none has numbers in two dimensions"
            raise NotApplicable(f"no constant can get few values: {reasons}")
        if fit:
            check_budget(budget, aside)
            if self.sqnr is not None and not aside:
                raise NotApplicable(
                    "sqnr needs samples that nothing is fitted to; give more than one (--data)"
                )
        elif budget != Budget() or self.sqnr is not None:
            raise NotApplicable("sqnr, min-sqnr and max-drop need calibration data (--data)")
        trial = Trial(original, aside or fit) if fit else None
        for most in self._distances(budget):
            try:
                changed, choices, fits, merged = self._made(original, found, most, fit, trial)
            except NotApplicable as e:  # fewer bytes than can be
                ctx.details["missed"] = str(e)
                raise
            quality = None if trial is None else trial.quality(changed)
            why = None if quality is None or budget == Budget() else budget.obstacle(quality)
            if why is None:
                break
        else:
            ctx.details["missed"] = f"with so few values, {why}"
            raise NotApplicable(ctx.details["missed"])
        if quality is not None:
            ctx.details["quality"] = {**quality.to_json(), "aside": bool(aside)}
            which = "that decided nothing" if aside else "calibrated on"
            if self.sqnr is not None:
                which = "that told how few values do"
            ctx.remark(f"{quality} on {quality.samples} samples {which}")
            if self.sqnr is not None and quality.sqnr_db < self.sqnr - _CLOSE:
                ctx.remark(f"sqnr={self.sqnr:g} was not reached; min-sqnr declines such a result")
            if (doubt := budget.doubt(quality)) is not None:
                ctx.remark(doubt)
            if trial is not None and trial.silent:
                ctx.remark("all outputs are zero on these samples, which tells nothing")
        else:
            ctx.remark("without data (--data) nothing makes up for the errors of few values")
        if self.similar is not None:
            ctx.details["merged"] = merged
            ctx.remark(
                f"{merged['constants']} constants and {merged['channels']} channels are others'"
            )
        tell(choices, fits, ctx)
        if self.dry or not ctx.allow("share-weights"):
            return False
        if self.code:
            store(changed, ctx)
        ctx.rewriter().become(changed)
        ctx.stats.applied["share"] += len(choices)
        return True

    def _distances(self, budget: Budget) -> list[float | None]:
        """Distances below which constants are merged, until a budget is kept."""
        if self.similar is None:
            return [None]
        if budget == Budget():
            return [self.similar]
        return [*(self.similar / 2**i for i in range(_HALVINGS)), None]

    def _made(
        self, original: ir.Model, found: Sequence[Constant], most: float | None,
        fit: Sequence[Feeds], trial: Trial | None,
    ) -> tuple[ir.Model, list[Choice], list[Fit], dict[str, int]]:  # fmt: skip
        """The model with few values, what each constant got, and what was merged before."""
        start = original
        merged = {"constants": 0, "channels": 0}
        if most is not None:
            start = ir.clone(original)
            merged["constants"] = merge(start, self._constants(start, fit), most, self.distance)
            found = self._constants(start, fit)
        curves = None
        if self.bytes is None and self.sqnr is None:
            choices = uniform(found, self.entries or _ENTRIES, self.blocks, self.vector)
        else:
            curves = Curves(start, found, fit, self.blocks, self.vector, self.threads)
            choices = (
                curves.for_noise(_noise(self.sqnr))
                if self.sqnr is not None
                else curves.for_bytes(self.bytes or 1.0)
            )
        choices = self._alike(choices, most, fit)
        changed, fits = written(original, start, choices, fit, self.threads)
        if self.sqnr is not None and trial is not None and curves is not None:
            # Noises of single constants do not quite add up, and layers make up for those before.
            reached = trial.quality(changed).sqnr_db
            if abs(reached - self.sqnr) > _CLOSE:
                wanted = self.sqnr + max(min(self.sqnr - reached, _MOST), -_MOST)
                choices = self._alike(curves.for_noise(_noise(wanted)), most, fit)
                changed, fits = written(original, start, choices, fit, self.threads)
        if most is not None and fit:
            merged["channels"] = sum(
                len(each.same) - 1 - int(each.same.max())
                for each in choices
                if each.same is not None
            )
        return changed, choices, fits, merged

    def _alike(
        self, choices: list[Choice], most: float | None, fit: Sequence[Feeds]
    ) -> list[Choice]:
        """Choices with output channels that are made alike."""
        if most is None or not fit:
            return choices
        return [
            dataclasses.replace(each, same=channels(each.constant, most, self.distance))
            for each in choices
        ]

    def _constants(
        self, model: ir.Model, fit: Sequence[Feeds], ctx: Context | None = None
    ) -> list[Constant]:
        least = 2 if self.bytes is not None or self.sqnr is not None else self.entries or _ENTRIES
        return constants(
            model, self.skip, self.min_weights, least, fit=bool(fit), code=self.code, ctx=ctx
        )


def _noise(sqnr_db: float) -> float:
    """Energy of noise in units of the signal's."""
    return float(10 ** (-sqnr_db / 10))
