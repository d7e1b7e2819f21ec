from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from graphopt import (
    PassManager,
    PipelineSyntaxError,
    Target,
    UnsupportedFeature,
    ir,
    parse,
    targets,
)
from graphopt.passes.legalize import ConvertOpset
from graphopt.testing import assert_equivalent, check_pass

MODEL = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,3] x, float[N,3] s) => (float[N] y)
    { t = Mul(x, s) y = ReduceMax<axes=[1],keepdims=0>(t) }
"""


def test_up() -> None:
    result = check_pass(
        ConvertOpset(to=18),
        MODEL,
        """
        graph(%x: float[N,3], %s: float[N,3]) {
          const %_v_6: int64[1] = [1]
          %t = Mul(%x, %s)
          %y = ReduceMax(%t, %_v_6) {keepdims=0}
          return %y
        }
        """,
    )
    assert result.report.passes[0].remarks == ["opset 17 became 18"]


def test_down_where_operators_are_the_same() -> None:
    down = ir.convert_opset(ir.parse_text(MODEL), 14)
    assert ir.opset(down) == 14
    assert "axes=[1]" in ir.dump(down)
    assert_equivalent(ir.parse_text(MODEL), down)


def test_down_where_a_type_is_missing() -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (bfloat16[2] x) => (bfloat16[2] y) { y = Relu(x) }
    """)
    with pytest.raises(UnsupportedFeature, match=r"onnx.checker rejects it at opset 11"):
        ir.convert_opset(model, 11)


def test_a_target_says_where_to() -> None:
    target = dataclasses.replace(targets.get("portable"), opsets=(18, 20))
    result = PassManager(ConvertOpset(), target=target).run(ir.parse_text(MODEL))
    assert ir.opset(result.model) == 18
    target = dataclasses.replace(target, opsets=(7, 20))
    result = PassManager(ConvertOpset(), target=target).run(ir.parse_text(MODEL))
    assert not result.report.changed


def test_what_has_no_form_there_is_left_alone() -> None:
    result = check_pass(
        ConvertOpset(to=16),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x, float[3] s) => (float[2,3] y) { y = LayerNormalization(x, s) }
        """,
        None,
    )
    record = result.report.passes[0]
    assert record.status == "not-applicable"
    assert "LayerNormalization" in (record.reason or "")
    assert "/" not in (record.reason or "")  # no path of onnx's sources


def test_opsets_nobody_knows() -> None:
    result = check_pass(ConvertOpset(to=9999), MODEL, None)
    assert "there is no opset 9999" in (result.report.passes[0].reason or "")
    with pytest.raises(PipelineSyntaxError, match="no opset"):
        parse("convert-opset{to=-1}")


def test_large_weights_are_shared_and_numbers_stay(models_dir: Path) -> None:
    source = ir.load(models_dir / "digits_mobilenet.onnx")
    got = ir.convert_opset(source, 21)
    assert ir.opset(got) == 21
    assert got.ir_version >= 10
    ir.verify(got)
    ir.check(source, got)
    assert ir.interface_difference(source, got) is None
    largest = max(source.graph.initializers.values(), key=lambda v: v.const_value.nbytes)  # type: ignore[union-attr]
    assert got.graph.initializers[largest.name or ""].const_value is largest.const_value
    assert_equivalent(source, got)


def test_subgraphs() -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[2,3] x) => (float[2] y) {
          y = If (c) <
            then_branch = a () => (float[2] p) { p = ReduceMax<axes=[1],keepdims=0>(x) },
            else_branch = b () => (float[2] q) { q = ReduceMin<axes=[1],keepdims=0>(x) }
          >
        }
    """)
    got = ir.convert_opset(model, 18)
    assert all(ir.opset(graph) == 18 for graph in ir.all_graphs(got))
    assert all(len(n.inputs) == 2 for n in ir.all_nodes(got) if n.op_type.startswith("Reduce"))
    assert_equivalent(model, got)


def test_defaults_of_inputs_stay_defaults() -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Mul(x, w) }
    """)
    got = ir.convert_opset(model, 18)
    assert [v.name for v in got.graph.inputs] == ["x", "w"]
    assert np.array_equal(got.graph.initializers["w"].const_value.numpy(), [1, 2])  # type: ignore[union-attr]


def test_opaque_models_are_refused() -> None:
    proto = ir.to_proto(ir.parse_text(MODEL))
    proto.training_info.add()
    with pytest.raises(UnsupportedFeature, match="carried through"):
        ir.convert_opset(ir.load(proto), 18)


OLD = """
    <ir_version: 8, opset_import: ["": 9]>
    g (float[1,4] x) => (float[1,2] y) { y = Slice<axes=[1],starts=[0],ends=[2]>(x) }
"""


def _picky(requirement: targets.Requirement) -> Target:
    portable = targets.get("portable")
    return dataclasses.replace(portable, opsets=(7, 26), requirements=(requirement,))


def test_old_forms_that_the_target_rejects() -> None:
    def why(node: ir.Node) -> str | None:
        return None if ir.opset(node) >= 10 else "it is of old"

    requirement = targets.Requirement("slice", why, frozenset({"Slice"}))
    picky = dataclasses.replace(
        targets.get("portable"), opsets=(7, 26), requirements=(requirement,)
    )
    result = PassManager(ConvertOpset(), target=picky, oracle="end").run(ir.parse_text(OLD))
    assert ir.opset(result.model) == 13
    assert result.report.oracle["verdict"] == "equal"


def test_old_forms_stay_where_that_helps_nothing() -> None:
    requirement = targets.Requirement("never", lambda _node: "nothing helps", frozenset())
    picky = dataclasses.replace(
        targets.get("portable"), opsets=(7, 26), requirements=(requirement,)
    )
    result = PassManager(ConvertOpset(), target=picky).run(ir.parse_text(OLD))
    assert not result.report.changed
    assert "convert: the target takes no more of it at opset 13" in result.report.passes[0].declined
    easy = dataclasses.replace(picky, requirements=())
    assert not PassManager(ConvertOpset(), target=easy).run(ir.parse_text(OLD)).report.changed
