from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import PassManager, ir, optimize, parse
from graphopt.errors import PipelineSyntaxError
from graphopt.passes.sharing import TieWeights, tie_weights
from graphopt.testing import check_pass

Array = np.ndarray[Any, Any]


def numbers(array: Array) -> str:
    return "{" + ", ".join(map(repr, array.reshape(-1).tolist())) + "}"


def table(rows: int = 6, columns: int = 4) -> Array:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


def text(e: Array, h: Array, body: str, *, outputs: str = "float[M,N] y, float[B,L,C] g") -> str:
    one, two = ("float" + str(list(a.shape)).replace(" ", "") for a in (e, h))
    return f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[M,{h.shape[0]}] x, int64[B,L] ids) => ({outputs})
    <{one} e = {numbers(e)}, {two} h = {numbers(h)}> {{
        g = Gather(e, ids)
        {body}
    }}
    """


IDS = [{"x": np.ones((3, 4), np.float32), "ids": np.array([[0, 5], [2, 3]])}]
SQUARE = [{"x": np.ones((3, 4), np.float32), "ids": np.array([[0, 3]])}]
ALL = "tie-weights{min-bytes=0}"


def test_the_columns_of_an_embedding_become_its_transpose() -> None:
    check_pass(
        ALL,
        text(table(), table().T, "y = MatMul(x, h)"),
        """
        graph(%x: float[M,4], %ids: int64[B,L]) {
          const %e: float[6,4]
          %g = Gather(%e, %ids)
          %transpose = Transpose(%e) {perm=[1, 0]}
          %y = MatMul(%x, %transpose)
          return %y, %g
        }
        """,
        data=IDS,
    )


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_transposes_by_itself(turned: int) -> None:
    given = table(6, 4)
    other = given if turned else given.T
    body = f"y = Gemm<transB={turned}>(x, h)"
    before = text(given if not turned else given.T, other, body)
    result = PassManager(ALL, data=SQUARE, on_mismatch="raise").run(ir.parse_text(before))
    (gemm,) = (node for node in result.model.graph if node.op_type == "Gemm")
    assert ir.attr(gemm, "transB", 0) == 1 - turned
    assert list(result.model.graph.initializers) == ["e"]
    assert "Transpose" not in ir.dump(result.model)


def test_other_shapes_of_the_same_bytes() -> None:
    result = check_pass(
        ALL,
        text(table(6, 4), table(6, 4).reshape(4, 6), "y = MatMul(x, h)"),
        """
        graph(%x: float[M,4], %ids: int64[B,L]) {
          const %e: float[6,4]
          const %h.shape: int64[2] = [4, 6]
          %g = Gather(%e, %ids)
          %reshape = Reshape(%e, %h.shape)
          %y = MatMul(%x, %reshape)
          return %y, %g
        }
        """,
        data=IDS,
    )
    assert result.report.passes[0].remarks == [
        "96 bytes of constants are stored once that were stored twice"
    ]


def changed(array: Array) -> Array:
    out = array.copy()
    out[1, 2] = np.nextafter(out[1, 2], np.float32(9))
    return out


@pytest.mark.parametrize(
    ("e", "h"),
    [
        (table(), changed(table().T)),
        (table(4, 4), table(4, 4)),  # another pass shares them
        (np.where(np.arange(24).reshape(6, 4) == 5, -0.0, table()).astype(np.float32),
         np.where(np.arange(24).reshape(6, 4) == 5, 0.0, table()).astype(np.float32).T),
        (table(), table().astype(np.float64).T),
    ],
    ids=["one bit", "equal", "minus zero", "another type"],
)  # fmt: skip
def test_what_is_not_the_same_stays(e: Array, h: Array) -> None:
    body = "y = MatMul(x, h)"
    if h.dtype == np.float64:
        body = "c = Cast<to=11>(x)\n d = MatMul(c, h)\n y = Cast<to=1>(d)"
    before = text(e, h, body)
    if h.dtype == np.float64:
        before = before.replace(
            f"float[{h.shape[0]},{h.shape[1]}] h", f"double[{h.shape[0]},{h.shape[1]}] h"
        )
    check_pass(ALL, before, None, data=SQUARE)


def test_squares() -> None:
    square = table(4, 4)
    for other in (square.T, np.zeros((4, 4), np.float32)):
        given = square if other.any() else other
        before = ir.parse_text(text(given, other, "y = MatMul(x, h)"))
        found = PassManager(ALL, data=SQUARE, oracle="each", on_mismatch="raise").run(before)
        assert list(found.model.graph.initializers) == ["e"]


def test_small_constants_outputs_and_subgraphs_stay() -> None:
    check_pass("tie-weights", text(table(), table().T, "y = MatMul(x, h)"), None, data=IDS)
    check_pass(
        ALL,
        text(
            table(),
            table().T,
            "y = MatMul(x, h)",
            outputs="float[M,N] y, float[B,L,C] g, float[4,6] h",
        ),
        None,
        data=IDS,
    )
    branch = """
        s = Size(ids)
        one = Constant<value_int=1>()
        t = Greater(s, one)
        y = If (t) <
            then_branch = a () => (float[M,N] p) { p = MatMul(x, h) },
            else_branch = b () => (float[M,N] q) { q = MatMul(x, h) }
        >
    """
    result = check_pass(ALL, text(table(), table().T, branch), None, data=IDS)
    assert result.report.passes[0].declined == {"tie: a subgraph uses it": 1}


def test_targets_that_would_transpose_in_every_run() -> None:
    result = check_pass(
        ALL, text(table(), table().T, "y = MatMul(x, h)"), None, data=IDS, target="openvino"
    )
    reason = "tie: models for openvino are not optimized when they are loaded"
    assert result.report.passes[0].declined == {reason: 1}


def test_bad_numbers() -> None:
    with pytest.raises(PipelineSyntaxError, match="min-bytes is a number of bytes, not -1"):
        parse("tie-weights{min-bytes=-1}")


def test_a_file_of_weights_is_compared_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tie_weights, "_PIECE", 100)
    e = table(37, 4)
    plain = ir.parse_text(text(e, e.T, "y = MatMul(x, h)"))
    ir.save(plain, tmp_path / "plain.onnx")
    onnx.save(
        onnx.load(tmp_path / "plain.onnx"), tmp_path / "outside.onnx",
        save_as_external_data=True, location="weights", size_threshold=0,
    )  # fmt: skip
    manager = PassManager(TieWeights(min_bytes=0), data=IDS, oracle="each", on_mismatch="raise")
    result = manager.run(ir.load(tmp_path / "outside.onnx"))
    assert ir.nbytes(result.model) < ir.nbytes(plain) - e.nbytes / 2
    e[36, 3] += 1
    other = ir.parse_text(text(e, table(37, 4).T, "y = MatMul(x, h)"))
    assert not manager.run(other).report.changed


def test_what_is_tied_stays_tied_and_runs_as_before(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    e = table(64, 16)
    body = "y = MatMul(x, h)"
    before = ir.parse_text(text(e, e.T, body))
    data = [{"x": np.ones((3, 16), np.float32), "ids": np.array([[0, 5], [2, 3]])}]
    tied = optimize(before, "tie-weights", data=data)
    again = optimize(tied.model, "O2", data=data)
    for model in (tied.model, again.model):
        assert ir.nbytes(model) < ir.nbytes(before) - e.nbytes / 2
    found = {}
    for name, model in {"before": before, "tied": tied.model}.items():
        ir.save(model, tmp_path / f"{name}.onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(tmp_path / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
        found[name] = sorted(node.op_type for node in nodes)
    assert found["tied"] == found["before"]
