from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import NotApplicable, PassManager, ir, optimize, parse
from graphopt.errors import PipelineSyntaxError
from graphopt.passes.sharing import CompactStorage, compact_storage
from graphopt.runtime import open_session
from graphopt.testing import check_pass

Array = np.ndarray[Any, Any]


BRANCHES = """
    c = Constant<value = bool {1}>()
    z = If(c) <
        then_branch = t () => (float[4,8] a) { a = Neg(w) },
        else_branch = e () => (float[4,8] b) { b = Abs(w) }
    >
"""


def text(weight: Array, *, opset: int = 17, extra: str = "", outputs: str = "") -> str:
    rows, columns = weight.shape
    numbers = ",".join(map(repr, weight.reshape(-1).tolist()))
    return f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    g (float[N,{rows}] x) => (float[N,{columns}] y{outputs})
    <float[{rows},{columns}] w = {{{numbers}}}> {{
        y = MatMul(x, w)
        {extra}
    }}
    """


def sparse(rows: int = 4, columns: int = 8, *, step: int = 2) -> Array:
    """Every second number is zero, or what step says."""
    flat = np.arange(1, rows * columns + 1, dtype=np.float32)
    flat[np.arange(len(flat)) % step > 0] = 0
    return flat.reshape(rows, columns)


def test_bits() -> None:
    weight = sparse()
    weight[0, 1] = 0.5  # no pattern of 2:4 any more, nor of 1:4
    weight[0, 3] = 0.25
    check_pass(
        CompactStorage(least=0),
        text(weight),
        """
        graph(%x: float[N,4]) {
          const %code: int32[] = 0
          const %code.10: int64[2] = [4, 8]
          const %code.2: int32[] = 256
          const %code.3: int32[] = 1
          const %code.4: int64[2] = [-1, 1]
          const %code.5: int32[8] = [128, 64, 32, 16, 8, 4, 2, 1]
          const %code.6: int32[] = 2
          const %code.7: int64[1] = [-1]
          const %w.mask: uint8[4]
          const %w.values: float16[19]
          %range = Range(%code, %code.2, %code.3)
          %reshape = Reshape(%range, %code.4)
          %div = Div(%reshape, %code.5)
          %mod = Mod(%div, %code.6)
          %cast = Cast(%w.values) {to=1}
          %cast.1 = Cast(%w.mask) {to=6}
          %gather = Gather(%mod, %cast.1)
          %reshape.8 = Reshape(%gather, %code.7)
          %cumsum = CumSum(%reshape.8, %code)
          %mul = Mul(%cumsum, %reshape.8)
          %gather.9 = Gather(%cast, %mul) {axis=0}
          %reshape.11 = Reshape(%gather.9, %code.10)
          %y = MatMul(%x, %reshape.11)
          return %y
        }
        """,
    )


def clustered(rows: int = 16, columns: int = 24, *, entries: int = 16) -> Array:
    rng = np.random.default_rng(0)
    book = rng.normal(size=entries).astype(np.float32)
    return book[rng.integers(0, entries, (rows, columns))]


def test_book() -> None:
    check_pass(
        CompactStorage(least=0),
        text(clustered()),
        """
        graph(%x: float[N,16]) {
          const %code: int32[] = 0
          const %code.1: int32[] = 256
          const %code.2: int32[] = 1
          const %code.3: int64[2] = [-1, 1]
          const %code.4: int32[2] = [16, 1]
          const %code.5: int32[] = 16
          const %code.7: int64[2] = [16, 24]
          const %w.book: float[16]
          const %w.places: uint8[192]
          %range = Range(%code, %code.1, %code.2)
          %reshape = Reshape(%range, %code.3)
          %div = Div(%reshape, %code.4)
          %mod = Mod(%div, %code.5)
          %cast = Cast(%w.places) {to=6}
          %gather = Gather(%w.book, %mod)
          %gather.6 = Gather(%gather, %cast)
          %reshape.8 = Reshape(%gather.6, %code.7)
          %y = MatMul(%x, %reshape.8)
          return %y
        }
        """,
    )


def test_uint4_where_the_opset_has_it() -> None:
    before = text(clustered(), opset=21).replace("ir_version: 8", "ir_version: 10")
    check_pass(
        CompactStorage(least=0),
        before,
        """
        graph(%x: float[N,16]) {
          const %w.book: float[16]
          const %w.places: uint4[16,24]
          %cast = Cast(%w.places) {to=6}
          %gather = Gather(%w.book, %cast)
          %y = MatMul(%x, %gather)
          return %y
        }
        """,
    )


def test_what_is_the_same_along_an_axis() -> None:
    weight = np.repeat(np.arange(1.1, 25, dtype=np.float32)[None], 16, axis=0)
    check_pass(
        CompactStorage(least=0),
        text(weight),
        """
        graph(%x: float[N,16]) {
          const %code: int64[2] = [16, 24]
          const %w.values: float[1,24]
          %expand = Expand(%w.values, %code)
          %y = MatMul(%x, %expand)
          return %y
        }
        """,
    )


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("step", [1, 2, 4, 30])
def test_the_same_bits(step: int, opset: int) -> None:
    before = ir.parse_text(text(sparse(32, 24, step=step), opset=opset))
    result = PassManager(CompactStorage(least=0), oracle="each", on_mismatch="raise").run(before)
    assert result.report.changed
    assert ir.nbytes(result.model) < ir.nbytes(before)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (text(sparse(step=1) * np.float32(1.1)), "code: no code is smaller"),
        (text(sparse(), extra=BRANCHES, outputs=", float[4,8] z"), "code: a subgraph uses it"),
    ],
)  # fmt: skip
def test_declines(model: str, reason: str) -> None:
    result = check_pass(CompactStorage(least=0), model, None)
    assert result.report.passes[0].declined == {reason: 1}


def test_too_little_to_save() -> None:
    assert check_pass(CompactStorage(), text(sparse()), None).report.passes[0].declined == {}
    with pytest.raises(PipelineSyntaxError, match="least is a number of bytes, not -1"):
        parse("compact-storage{least=-1}")


def test_more_elements_than_places_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_storage, "_MOST", 31)
    result = check_pass(CompactStorage(least=0), text(sparse()), None)
    reason = "code: it has too many elements to count in 32 bits"
    assert result.report.passes[0].declined == {reason: 1}


def test_a_constant_that_is_an_output_stays() -> None:
    check_pass(CompactStorage(least=0), text(sparse(), outputs=", float[4,8] w"), None)


def test_external_data_and_names_that_are_taken(tmp_path: Path) -> None:
    model = ir.parse_text(text(sparse(), extra="").replace("y = MatMul(x, w)", """
        a = MatMul(x, w)
        code = Add(a, a)
        y = Mul(code, a)
    """))  # fmt: skip
    ir.save(model, tmp_path / "plain.onnx")
    onnx.save(
        onnx.load(tmp_path / "plain.onnx"), tmp_path / "outside.onnx",
        save_as_external_data=True, location="weights", size_threshold=0,
    )  # fmt: skip
    manager = PassManager(CompactStorage(least=0), oracle="each", on_mismatch="raise")
    assert manager.run(ir.load(tmp_path / "outside.onnx")).report.changed


def test_old_opsets_are_left_alone() -> None:
    result = check_pass(CompactStorage(least=0), text(sparse(), opset=10), None)
    assert "11" in (result.report.passes[0].reason or "")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("openvino", "models for openvino are not optimized by ONNX Runtime"),
        ("nnapi", "nnapi does not compute what codes are made of"),
    ],
)
def test_targets_that_would_decode_every_time(target: str, reason: str) -> None:
    result = check_pass(CompactStorage(least=0), text(sparse()), None, target=target)
    assert (result.report.passes[0].reason or "").startswith(reason)
    assert result.report.passes[0].status == "not-applicable"


def test_an_input_that_callers_may_override_stays() -> None:
    model = ir.parse_text(text(sparse()))
    model.graph.inputs.append(model.graph.initializers["w"])
    check_pass(CompactStorage(least=0), model, None)


def optimized(path: Path, folder: Path) -> Counter[str]:
    """The operators of a model after ONNX Runtime optimized it."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize(
    ("name", "share"), [("resnet", 0.35), ("lstm", 0.95), ("transformer", 0.5), ("mobilenet", 0.6)]
)
def test_onnx_runtime_runs_the_same_operators(
    name: str, share: float, models_dir: Path, tmp_path: Path
) -> None:
    plain = optimize(models_dir / f"digits_{name}.onnx", "O2,sparsify{method=magnitude code=false}")
    ir.save(plain.model, tmp_path / "plain.onnx")
    coded = optimize(tmp_path / "plain.onnx", "compact-storage,O1")
    assert not coded.report.reverted
    ir.save(coded.model, tmp_path / "coded.onnx")
    sizes = [(tmp_path / f"{each}.onnx").stat().st_size for each in ("plain", "coded")]
    assert sizes[1] < share * sizes[0]
    assert optimized(tmp_path / "coded.onnx", tmp_path) == optimized(
        tmp_path / "plain.onnx", tmp_path
    )
    images = np.load(models_dir / "digits_test.npz")["image"][:8]
    found = []
    for each in ("plain", "coded"):
        with open_session(tmp_path / f"{each}.onnx", optimize=True) as session:
            found.append(next(iter(session.run({"image": images}).values())))
    assert found[0].tobytes() == found[1].tobytes()


def test_integers_of_quantized_models(models_dir: Path, tmp_path: Path) -> None:
    quantized = optimize(
        models_dir / "digits_vgg.onnx",
        "O2,sparsify{method=magnitude code=false},quantize-int8{choose=all samples=16 "
        "calibrate=minmax equalize=false rounding=nearest}",
        data=models_dir / "digits_calib.npz",
        target="cpu-x64",
    )
    coded = optimize(quantized.model, "compact-storage", target="cpu-x64")
    values = coded.model.graph.initializers
    assert any(v.dtype is ir.DataType.INT8 and n.endswith(".values") for n, v in values.items())
    for name, result in {"plain": quantized, "coded": coded}.items():
        ir.save(result.model, tmp_path / f"{name}.onnx")
    assert optimized(tmp_path / "coded.onnx", tmp_path) == optimized(
        tmp_path / "plain.onnx", tmp_path
    )
    sizes = [(tmp_path / f"{each}.onnx").stat().st_size for each in ("plain", "coded")]
    assert sizes[1] < 0.75 * sizes[0]


def test_not_applicable_is_said_by_the_pass_itself() -> None:
    from graphopt import Context, targets

    model = ir.parse_text(text(sparse()))
    with pytest.raises(NotApplicable, match="decoded in every run"):
        CompactStorage().run(model, Context(model, targets.get("openvino")))
