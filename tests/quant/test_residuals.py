from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import Exactness, ir
from graphopt.quant.residuals import keep_normalizations
from graphopt.rewrite import Rewriter
from graphopt.testing import assert_equivalent

STEPS = """
    m = ReduceMean<axes=[-1]>(a) d = Sub(a, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q)
    e = Add(v, eps) r = Sqrt(e) n = Div(d, r) t = Mul(n, s) y = Add(t, b)
"""


def build(body: str, opset: int = 17) -> ir.Model:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[2,6,8] x, float[2,6,8] z, double[2,6,8] f) => (y) {{ {body} }}"""
    )
    rng = np.random.default_rng(0)
    constants = {
        "s": rng.normal(size=8), "b": rng.normal(size=8), "two": np.float64(2),
        "eps": np.float64(1e-5),
    }  # fmt: skip
    for name, data in constants.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(data, np.float32), name)
        )
    proto = onnx.shape_inference.infer_shapes(proto)
    model = ir.load(proto)
    Rewriter(model).remove_initializers()
    return model


def kept(model: ir.Model) -> tuple[ir.Model, int]:
    copy = ir.clone(model)
    count = keep_normalizations(Rewriter(copy))
    ir.verify(copy)
    return copy, count


def fused(model: ir.Model, path: Path) -> set[str]:
    """Operators of the model that ONNX Runtime makes of it when it loads it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return {n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node}


def test_text() -> None:
    model, count = kept(build("a = Add(x, z) y = LayerNormalization(a, s, b)"))
    assert count == 1
    assert ir.dump(model) == textwrap.dedent(
        """\
        graph(%x: float[2,6,8], %z: float[2,6,8], %f: double[2,6,8]) {
          const %b: float[8]
          const %s: float[8]
          %sum = Sum(%x, %z)
          %y = LayerNormalization(%sum, %s, %b)
          return %y
        }
        """
    )


@pytest.mark.parametrize("body", ["y = LayerNormalization(a, s, b)", STEPS])
def test_same_bits_and_no_fusion(body: str, tmp_path: Path) -> None:
    model = build(f"a = Add(x, z) {body}")
    copy, count = kept(model)
    assert count == 1
    assert_equivalent(model, copy, Exactness.BITWISE)
    assert "SkipLayerNormalization" in fused(model, tmp_path)
    assert "SkipLayerNormalization" not in fused(copy, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, s) y = LayerNormalization(a, s, b)",  # a bias
        "a = Add(x, z) y = Relu(a)",
        "a = Add(x, z) y = ReduceMean<axes=[-1]>(a)",
        "a = Add(f, f) c = Cast<to=1>(a) y = LayerNormalization(c, s, b)",
        "a = Mul(x, z) y = LayerNormalization(a, s, b)",
    ],
)
def test_others_stay(body: str) -> None:
    model = build(body)
    copy, count = kept(model)
    assert count == 0
    assert ir.dump(copy) == ir.dump(model)


def test_types_and_opsets_it_is_not_made_for() -> None:
    double = build("a = Add(f, f) m = ReduceMean<axes=[-1]>(a) y = Sub(a, m)")
    assert kept(double)[1] == 0
    old = build("a = Add(x, z) m = ReduceMean<axes=[-1]>(a) y = Sub(a, m)", opset=7)
    assert kept(old)[1] == 0


def test_a_graph_output_keeps_its_name() -> None:
    model = build("y = Add(x, z) n = LayerNormalization(y, s, b)")
    copy, count = kept(model)
    assert count == 1
    assert_equivalent(model, copy, Exactness.BITWISE)
