from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import PassManager, PipelineSyntaxError, ir, parse
from graphopt.passes.legalize import FixShapes
from graphopt.testing import check_pass

MODEL = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,3,H,?] x, float[N,1,1,1] s) => (float[N,3,H,?] y, float[N,M] z)
    { y = Mul(x, s) z = Flatten(y) }
"""


def test_symbols_and_places() -> None:
    result = check_pass(
        FixShapes(dims=("N=2", "H=4", "x[3]=5")),
        MODEL,
        """
        graph(%x: float[2,3,4,5], %s: float[2,1,1,1]) {
          %y = Mul(%x, %s)
          %z = Flatten(%y)
          return %y, %z
        }
        """,
    )
    assert result.report.passes[0].remarks == ["the interface changed: N=2, H=4, x[3]=5"]
    assert [ir.dims(v) for v in result.model.graph.outputs] == [(2, 3, 4, 5), (2, 60)]
    proto = ir.to_proto(result.model)
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.output]
    assert shapes == [[2, 3, 4, 5], [2, 60]]


def test_some_stay_open() -> None:
    check_pass(
        FixShapes(dims=("x[0]=1",)),
        MODEL,
        """
        graph(%x: float[1,3,H,?], %s: float[1,1,1,1]) {
          %y = Mul(%x, %s)
          %z = Flatten(%y)
          return %y, %z
        }
        """,
    )


def test_the_source_keeps_its_interface() -> None:
    source = ir.parse_text(MODEL)
    PassManager(FixShapes(dims=("N=2",))).run(source)
    told = ir.to_proto(source).graph.input[0].type.tensor_type.shape.dim[0]
    assert told.dim_param == "N"


def test_outputs_are_compared_on_what_is_left(models_dir: Path) -> None:
    source = ir.load(models_dir / "digits_resnet.onnx")
    (image,) = ir.inputs(source)
    symbol = ir.dims(image)[0]  # type: ignore[index]
    data = [
        {image.name or "": np.zeros((n, *ir.dims(image)[1:]), np.float32)}  # type: ignore[index]
        for n in (3, 2)
    ]
    manager = PassManager(
        f'fix-shapes{{dims="{symbol}=2"}},O2', oracle="each", on_mismatch="raise", data=data
    )
    report = manager.run(source).report
    assert report.passes[0].status == "ok"
    assert report.oracle["verdict"] == "equal"
    assert report.oracle["feeds"]["samples"] == 1  # the one of two samples
    assert report.oracle["feeds"]["made"] > 0


def test_data_of_other_shapes_are_mentioned() -> None:
    source = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }
    """)
    data = [{"x": np.zeros((3, 2), np.float32)}]
    manager = PassManager('fix-shapes{dims="N=1"}', oracle="end", on_mismatch="raise", data=data)
    report = manager.run(source).report
    assert report.oracle["feeds"]["samples"] == 0
    assert "no batch of the data has the shapes that the result accepts" in report.remarks


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        (("K=1",), "no input has a dimension 'K'; there are: N, H, x[3]"),
        (("x[1]=4",), "x[1] is 3, not 4"),
        (("N=1", "s[0]=2"), "N is to be 1 and 2"),
    ],
)
def test_declines(dims: tuple[str, ...], why: str) -> None:
    result = check_pass(FixShapes(dims=dims), MODEL, None)
    assert result.report.passes[0].status == "not-applicable"
    assert result.report.passes[0].reason == why


def test_what_is_fixed_already_is_no_change() -> None:
    check_pass(FixShapes(dims=("x[1]=3",)), MODEL, None)
    check_pass(FixShapes(), MODEL, None)


def test_wrongly_declared_outputs_stay() -> None:
    model = ir.parse_text(MODEL.replace("float[N,M] z", "float[N,7] z"))
    result = PassManager(FixShapes(dims=("N=2", "H=4", "x[3]=5"))).run(model)
    assert any("does not fit the computed one" in r for r in result.report.passes[0].remarks)
    proto: onnx.ModelProto = ir.to_proto(result.model)
    assert proto.graph.output[1].type.tensor_type.shape.dim[1].dim_value == 7


def test_text_form() -> None:
    text = 'fix-shapes{dims="N=1","x[2]=224"}'
    assert str(parse(text)) == text
    with pytest.raises(PipelineSyntaxError, match="no dimension and size"):
        parse('fix-shapes{dims="N"}')


def test_shapes_behind_foreign_operators_follow() -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17, "mine": 1]>
        g (float[N,3] x) => (float[N,3] y) <float[N,3] t> { t = mine.Op(x) y = Relu(t) }
    """)
    result = PassManager(FixShapes(dims=("N=2",))).run(model)
    assert ir.dims(result.model.graph.outputs[0]) == (2, 3)
