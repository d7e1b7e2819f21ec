"""Convolutions of integers, and what stands between them, with the channels last."""

from __future__ import annotations

from graphopt import Context, Exactness, NotApplicable, Pass, Rewriter, ir
from graphopt.passes.quantize._layout_choice import Island, choose, indifferent, islands
from graphopt.passes.quantize._qlinear import CONTRIB, import_contrib, takes_contrib

__all__ = ["ChannelsLast"]


class ChannelsLast(Pass):
    """Compute quantized convolutions, and what stands between them, with the channels last.

    What it does: ONNX Runtime computes QLinearConv with the channels last and transposes before and
    behind where the model says otherwise. Its optimizer removes some of these Transpose, but leaves
    all around residual additions where one branch comes from an operator on floats. This pass
    spells convolutions as ONNX Runtime's QLinearConv with channels_last=1, and what stands between
    them (QLinearAdd, QLinearMul, QLinearConcat, pooling, QLinearLeakyRelu, QLinearSigmoid, Clip,
    Pad, Slice, nearest Resize, MaxPool, Concat, quantizers) in the same layout. Where to transpose
    is a minimum cut: as few bytes as possible, so of integers and not of floats. Weights stay as
    they are. Flatten and Reshape of one pixel need no Transpose.

    Exactness: BITWISE

    Needs: nothing

    Options: none

    Example: QLinearAdd(QLinearConv(x), QLinearConv(x)) ->
    Transpose(QLinearAdd(QLinearConv(t) {channels_last=1}, QLinearConv(t) {channels_last=1})) with
    t = Transpose(x)

    Declines when: the target is not a CPU that ONNX Runtime computes on, or takes no operators of
    its domain. An operator without such a form ends an island, as do axes, pads or sizes that are
    computed, ranks that are unknown, and scales per channel; an island without QLinearConv is left
    alone, and so is a model that is not lowered (lower-qdq does it).

    References: ONNX Runtime, ContribOperators.md (QLinearConv, NhwcMaxPool); nhwc_transformer.cc.
    """

    name = "channels-last"
    exactness = Exactness.BITWISE
    # Counted statically, Transpose nodes look as if added; those that they save are ONNX Runtime's.
    gated = False
    min_opset = 10

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Choose a layout for every operator and transpose where they differ."""
        if not takes_contrib(ctx.target):
            raise NotApplicable(f"{ctx.target.name} does not take {CONTRIB}.QLinearConv")
        rw = ctx.rewriter()
        found = [each for graph in ir.all_graphs(model) for each in islands(graph)]
        for island in found:
            last = choose(island)
            if not ctx.allow(f"channels-last at %{next(iter(island)).outputs[0].name}"):
                break
            _relayout(rw, {n: f for n, f in island.items() if n in last})
            ctx.stats.applied["channels-last"] += 1
        if rw.changed:
            rw.remove_initializers()
            import_contrib(model)
        return rw.changed


def _relayout(rw: Rewriter, chosen: Island) -> None:
    """Give nodes their channels-last form, and transpose what comes in and goes out."""
    last: dict[ir.Value, ir.Value] = {}
    for node, spelled in chosen.items():
        out = node.outputs[0]
        rank = spelled.rank
        with rw.at(node):
            inputs = list(node.inputs)
            for i in spelled.reads:
                source = inputs[i]
                assert source is not None
                if source not in last:
                    last[source] = _transpose(rw, source, _to_last(rank))
                inputs[i] = last[source]
            new = spelled.build(rw, node, inputs, rank)
            _describe(new, out, _to_last(rank))
            last[out] = new
            first = None
            uses = [
                u for u in out.uses() if u.node not in chosen or u.idx not in chosen[u.node].reads
            ]
            for use in uses:
                if indifferent(use.node, use.idx):
                    rw.set_input(use.node, use.idx, new)
                else:
                    first = first or _transpose(rw, new, _to_first(rank))
            if out.is_graph_output():
                first = first or _transpose(rw, new, _to_first(rank))
        if first is not None:
            rw.replace(out, first)
            last[first] = new
    for node in reversed(chosen):
        rw.erase(node)


def _to_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _to_first(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def _transpose(rw: Rewriter, value: ir.Value, perm: list[int]) -> ir.Value:
    made = rw.op("Transpose", value, perm=perm)
    node = made.producer()
    assert node is not None
    node.name = made.name  # not that of the node that it is made for
    _describe(made, value, perm)
    return made


def _describe(made: ir.Value, like: ir.Value, perm: list[int]) -> None:
    if isinstance(like.type, ir.TensorType):
        made.type = ir.TensorType(like.type.dtype)
    if like.shape is not None:
        made.shape = ir.Shape([like.shape[i] for i in perm])
