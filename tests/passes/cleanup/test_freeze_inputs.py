from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphopt import PassManager, PipelineSyntaxError, ir, parse
from graphopt.manager.registry import Registry
from graphopt.passes.cleanup import FreezeInputs
from graphopt.testing import check_pass

MODEL = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N] x, float w = {2}, float b = {3}) => (float[N] y) { t = Mul(x, w) y = Add(t, b) }
"""


def test_all() -> None:
    result = check_pass(
        FreezeInputs(),
        MODEL,
        """
        graph(%x: float[N]) {
          const %b: float[]
          const %w: float[]
          %t = Mul(%x, %w)
          %y = Add(%t, %b)
          return %y
        }
        """,
    )
    record = result.report.passes[0]
    assert record.rewrites == {"freeze": 2}
    assert record.remarks == ["the interface changed: w, b can no longer be fed"]


def test_keep() -> None:
    result = check_pass(
        FreezeInputs(keep=("b.*", "c")),
        MODEL,
        """
        graph(%x: float[N], %b: float[]) {
          default %b: float[]
          const %w: float[]
          %t = Mul(%x, %w)
          %y = Add(%t, %b)
          return %y
        }
        """,
    )
    assert result.report.passes[0].declined == {"freeze: keep names the input": 1}


def test_keep_matches_whole_names() -> None:
    source = ir.parse_text(MODEL.replace("w", "bw"))
    result = PassManager(FreezeInputs(keep=("b",))).run(source)
    assert [v.name for v in result.model.graph.inputs] == ["x", "b"]


def test_nothing_to_freeze() -> None:
    check_pass(
        FreezeInputs(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, float[N] w) => (float[N] y) <float k = {2}> { t = Mul(x, k) y = Add(t, w) }
        """,
        None,
    )


def test_the_file_says_so_too(tmp_path: Path) -> None:
    source = ir.parse_text(MODEL)
    result = PassManager(FreezeInputs(), oracle="end", on_mismatch="raise").run(source)
    ir.save(result.model, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    assert [i.name for i in proto.graph.input] == ["x"]
    assert {t.name for t in proto.graph.initializer} == {"w", "b"}
    assert [v.name for v in source.graph.inputs] == ["x", "w", "b"]
    assert len(ir.load(tmp_path / "m.onnx").graph.inputs) == 1


def test_text_form() -> None:
    registry = Registry()
    registry.register(FreezeInputs)
    text = 'freeze-inputs{keep="w.*"}'
    assert str(parse(text, registry)) == text
    with pytest.raises(PipelineSyntaxError, match="no regular expression"):
        parse('freeze-inputs{keep="("}', registry)
