"""The pass manager: checks, undoing, the gate, the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import (
    Const,
    Context,
    Exactness,
    Match,
    NotApplicable,
    NumericalMismatch,
    Op,
    Pass,
    PassFailed,
    PassManager,
    Pipeline,
    Replacement,
    RewritePass,
    Rewriter,
    Var,
    ir,
    parse,
    rule,
)
from graphopt.errors import ConfigError
from graphopt.ir.random_model import random_model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
MODEL = (
    HEAD
    + """g (float[N,3] a) => (float[N,3] y) <float[3] k = {1,2,3}> {
      p = Identity(a)  q = Relu(p)  r = Add(q, k)  y = Tanh(r)
    }"""
)
x, c = Var(), Const()


@rule(Op("Identity", x))
def drop(m: Match, rw: Rewriter) -> Replacement:
    return m[x]


@rule(Op("Add", Op("Relu", x), c))
def forget_relu(m: Match, rw: Rewriter) -> Replacement:
    return rw.op("Add", m[x], m.value(c))


class DropIdentity(RewritePass):
    """Drop Identity."""

    name = "drop-identity"
    exactness = Exactness.BITWISE
    rules = (drop,)


class ForgetRelu(RewritePass):
    """A wrong rewrite."""

    name = "forget-relu"
    rules = (forget_relu,)


class Crash(Pass):
    """A pass with a bug, which shows after it has changed the model."""

    name = "crash"

    def run(self, model: ir.Model, ctx: Context) -> bool:
        rw = ctx.rewriter()
        with rw.at_end(model.graph):
            rw.op("Abs", model.graph.inputs[0])
        raise KeyError("lost")


class Break(Pass):
    """Leaves a dangling use behind, by going around the Rewriter."""

    name = "break-structure"

    def run(self, model: ir.Model, ctx: Context) -> bool:
        model.graph.remove(next(iter(model.graph)))
        return True


class Grow(Pass):
    """Makes the model slower and the file larger."""

    name = "grow"
    exactness = Exactness.BITWISE
    size: int = 1000

    def run(self, model: ir.Model, ctx: Context) -> bool:
        rw = ctx.rewriter()
        out = model.graph.outputs[0]
        zeros = rw.const(np.zeros((self.size, 3), np.float32))
        with rw.at_end(model.graph):
            top = rw.op("Slice", zeros, rw.const(np.array([0])), rw.const(np.array([1])))
            rw.replace(out, rw.op("Sub", out, top))
        return True


class Liar(Pass):
    """Changes the model and says it did not."""

    name = "liar"

    def run(self, model: ir.Model, ctx: Context) -> bool:
        rw = ctx.rewriter()
        first = next(iter(model.graph))
        rw.replace(first.outputs[0], first.inputs[0])  # type: ignore[arg-type]
        rw.erase(first)
        return False


class Needy(Pass):
    """Needs what is not there."""

    name = "needy"

    def run(self, model: ir.Model, ctx: Context) -> bool:
        if ctx.data is None:
            raise NotApplicable("needs calibration data")
        return False


class Modern(RewritePass):
    """Knows nothing of old models."""

    name = "modern"
    min_opset = 18
    rules = (drop,)


def run(*passes: Pass, text: str = MODEL, **options: Any) -> Any:
    return PassManager(Pipeline(passes=passes), **options).run(ir.parse_text(text))


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def test_the_input_is_not_modified() -> None:
    model = ir.parse_text(MODEL)
    before = ir.dump(model)
    result = PassManager(Pipeline(passes=(DropIdentity(),))).run(model)
    assert ir.dump(model) == before
    assert ops(result.model) == ["Relu", "Add", "Tanh"]
    (record,) = result.report.passes
    assert record.status == "ok"
    assert record.rewrites["drop"] == 1
    assert (record.before.nodes, record.after.nodes) == (4, 3)


@pytest.mark.parametrize("oracle", ["each", "end"])
def test_a_wrong_pass_is_undone_and_named_and_the_others_stay(oracle: Any) -> None:
    result = run(ForgetRelu(), DropIdentity(), oracle=oracle)
    assert ops(result.model) == ["Relu", "Add", "Tanh"]
    (bad,) = result.report.reverted
    assert bad.name == "forget-relu"
    assert "changed the numbers" in (bad.reason or "")
    assert bad.rewrites == {"forget-relu": 1}
    assert result.report.oracle["verdict"] == "equal"


@pytest.mark.parametrize("oracle", ["each", "end"])
def test_a_wrong_pass_raises_where_asked(oracle: Any) -> None:
    with pytest.raises(NumericalMismatch, match=r"forget-relu|differs from the original"):
        run(ForgetRelu(), oracle=oracle, on_mismatch="raise")


def test_without_oracle_numbers_are_not_checked() -> None:
    result = run(ForgetRelu())
    assert ops(result.model) == ["Identity", "Add", "Tanh"]
    assert result.report.oracle == {"mode": "off", "verdict": "not run"}


def test_a_crash_is_undone_and_named() -> None:
    result = run(Crash(), DropIdentity())
    assert ops(result.model) == ["Relu", "Add", "Tanh"]
    assert result.report.passes[0].status == "reverted"
    assert "KeyError: 'lost'" in (result.report.passes[0].reason or "")


def test_a_crash_raises_where_asked() -> None:
    with pytest.raises(PassFailed, match="pass crash raised KeyError: 'lost'") as caught:
        run(Crash(), on_mismatch="raise")
    assert caught.value.pass_text == "crash"


def test_a_broken_structure_is_undone_and_named() -> None:
    result = run(Break(), DropIdentity())
    assert ops(result.model) == ["Relu", "Add", "Tanh"]
    assert "left an invalid model" in (result.report.passes[0].reason or "")


@pytest.mark.parametrize("objective", ["cost", "bytes", "nodes"])
def test_the_gate_undoes_what_makes_the_model_worse(objective: Any) -> None:
    result = run(Grow(), objective=objective)
    assert ops(result.model) == ["Identity", "Relu", "Add", "Tanh"]
    (record,) = result.report.passes
    assert record.status == "reverted"
    assert "would rise" in (record.reason or "")


def test_growth_is_kept_where_asked() -> None:
    result = run(Grow(), objective=None, oracle="each")
    assert ops(result.model)[-1] == "Sub"
    assert not result.report.reverted


def test_the_file_must_not_grow_by_a_little_either() -> None:
    result = run(Grow(size=1), objective="bytes")
    assert ops(result.model) == ["Identity", "Relu", "Add", "Tanh"]
    assert "made the file grow" in (result.report.passes[0].reason or "")


def test_a_pass_that_denies_its_change_is_checked_all_the_same() -> None:
    result = run(Liar(), oracle="each")
    assert result.report.changed
    assert ops(result.model) == ["Relu", "Add", "Tanh"]


def test_not_applicable_is_reported_and_the_rest_runs() -> None:
    result = run(Needy(), DropIdentity())
    first, second = result.report.passes
    assert (first.status, first.reason) == ("not-applicable", "needs calibration data")
    assert second.status == "ok"


def test_old_models_are_left_alone() -> None:
    result = run(Modern())
    assert result.report.passes[0].reason == "needs opset 18, the model has 17"
    assert ops(result.model) == ["Identity", "Relu", "Add", "Tanh"]


def test_fuel_counts_passes_and_rewrites() -> None:
    two = HEAD + "g (float[2] a) => (float[2] y) { p = Identity(a)  q = Identity(p)  y = Neg(q) }"
    counts = []
    for fuel in range(5):
        result = run(DropIdentity(), text=two, fuel=fuel)
        counts.append(len(list(result.model.graph)))
    assert counts == [3, 3, 2, 1, 1]
    assert run(DropIdentity(), text=two, fuel=0).report.passes[0].status == "skipped"


def test_repeated_pipelines_stop_when_nothing_changes() -> None:
    loop = Pipeline(passes=(DropIdentity(), Needy()), repeat=9)
    result = PassManager(loop).run(ir.parse_text(MODEL))
    assert [r.name for r in result.report.passes] == ["drop-identity", "needy"] * 2


def test_analyses_are_cached_and_dropped_after_a_change() -> None:
    built = []

    class Count:
        def __init__(self, model: ir.Model, ctx: Context) -> None:
            built.append(len(list(model.graph)))

    class Ask(Pass):
        """Asks twice."""

        name = "ask"

        def run(self, model: ir.Model, ctx: Context) -> bool:
            assert ctx[Count] is ctx[Count]
            return False

    class Keep(DropIdentity):
        """Keeps the analysis."""

        name = "keep"
        preserves = (Count,)

    run(Ask(), Ask(), DropIdentity(), Ask())
    assert built == [4, 3]
    built.clear()
    run(Ask(), Keep(), Ask())
    assert built == [4]


def test_an_opaque_model_comes_back_as_it_is() -> None:
    import onnx
    from onnx import helper

    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("i", onnx.TensorProto.INT64, [1], [1]),
        [3],
    )
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [3])],
        [helper.make_tensor_value_info("y", 1, [3])],
    )
    graph.sparse_initializer.append(sparse)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    proto.training_info.add()
    result = PassManager(Pipeline(passes=(DropIdentity(),)), oracle="end").run(ir.load(proto))
    assert ir.to_proto(result.model) == proto
    assert any("carried through unchanged" in r for r in result.report.remarks)


def test_a_model_the_oracle_cannot_run_is_said_to_be_unchecked() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>\n'
        "g (float[2] a) => (float[2] y) { p = Identity(a)  y = my.ops.Secret(p) }"
    )
    result = run(DropIdentity(), text=text, oracle="each")
    assert ops(result.model) == ["Secret"]
    assert result.report.oracle["verdict"] == "unavailable"
    assert "Secret" in result.report.oracle["reason"]


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="'maybe' is none of each, end, off"):
        PassManager("", oracle="maybe")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"there is no target 'cpux64'; did you mean 'cpu-x64'\?"):
        PassManager("", target="cpux64")


def test_two_runs_give_the_same_bytes() -> None:
    for seed in range(3):
        model = random_model(seed)
        manager = PassManager(Pipeline(passes=(DropIdentity(),)))
        assert ir.to_bytes(manager.run(model).model) == ir.to_bytes(manager.run(model).model)


def test_what_a_pass_changes_past_the_rewriter_and_denies_is_dropped() -> None:
    class Sneak(Pass):
        """Edits an object of onnx_ir and says it did nothing."""

        name = "sneak"

        def run(self, model: ir.Model, ctx: Context) -> bool:
            next(n for n in model.graph if n.op_type == "Tanh").op_type = "Sigmoid"
            return False

    for pipeline in (
        Pipeline(passes=(Sneak(),)),
        Pipeline(passes=(parse("infer-shapes"), Sneak())),
    ):
        result = PassManager(pipeline).run(ir.parse_text(MODEL))
        assert not result.report.changed
        assert ops(result.model) == ["Identity", "Relu", "Add", "Tanh"]
