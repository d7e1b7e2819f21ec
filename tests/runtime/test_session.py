"""Sessions: types NumPy lacks, weights lent without a copy, errors in one line, no noise."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import RuntimeUnavailable, SessionError
from graphopt.runtime import session as sessions
from graphopt.runtime.session import Session, open_session, ort

HEADER = '<ir_version: 10, opset_import: ["": 21]>'


def model_of(
    node: str,
    input_type: onnx.TypeProto,
    output_type: onnx.TypeProto,
    *,
    domain: str = "",
    initializers: Any = (),
    more: tuple[str, ...] = (),
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(node, ["x", *more], ["y"], domain=domain, **attributes)],
        "g",
        [helper.make_value_info("x", input_type)],
        [helper.make_value_info("y", output_type)],
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def tensor(elem: int, shape: Any = (2, 3)) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(elem, shape)


def matmul(weights: np.ndarray) -> ir.Model:
    rows, columns = weights.shape
    elem = helper.np_dtype_to_tensor_dtype(weights.dtype)
    return ir.load(
        model_of(
            "MatMul",
            tensor(elem, ("N", rows)),
            tensor(elem, ("N", columns)),
            initializers=[numpy_helper.from_array(weights, "w")],
            more=("w",),
        )
    )


@pytest.fixture
def fresh_ort() -> Iterator[None]:
    ort.cache_clear()
    yield
    ort.cache_clear()


@pytest.mark.usefixtures("fresh_ort")
def test_missing_onnxruntime_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match=r"graphopt\[cpu\].*graphopt\[gpu\]"):
        ort()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (HEADER + "g (float[2] x) => (float[2] y) { y = Bogus(x) }", "Bogus"),
        (HEADER + "g (float[2] x) => (float[3] y) { y = Reshape<allowzero=7.5>(x, x) }", "Reshape"),
    ],
)
def test_refused_model_is_one_line_and_silent(
    source: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SessionError, match=message) as raised:
        open_session(onnx.parser.parse_model(source))
    assert "\n" not in str(raised.value)
    assert "ONNXRuntimeError" not in str(raised.value)
    assert "onnxruntime_src" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_refused_feeds(capfd: pytest.CaptureFixture[str]) -> None:
    with open_session(model_of("Identity", tensor(1), tensor(1))) as session:
        for feeds in (
            {},
            {"z": np.zeros((2, 3), np.float32)},
            {"x": np.zeros((2, 3))},
            {"x": np.zeros((4, 3), np.float32)},
            {"x": [np.zeros((2, 3), np.float32)] * 2},
        ):
            with pytest.raises(SessionError):
                session.run(feeds)
        assert session.run({"x": np.ones((2, 3), np.float32)})["y"].sum() == 6
    assert capfd.readouterr() == ("", "")


def test_missing_or_broken_files(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="exist"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model at all")
    with pytest.raises(SessionError):
        open_session(tmp_path / "broken.onnx")
    with pytest.raises(SessionError):
        open_session(b"not a model at all")


def test_path_bytes_proto_and_model_agree(tmp_path: Path) -> None:
    proto = model_of("Neg", tensor(1), tensor(1))
    onnx.save(proto, tmp_path / "m.onnx")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for source in (tmp_path / "m.onnx", proto.SerializeToString(), proto, ir.load(proto)):
        with open_session(source) as session:
            assert session.inputs == {"x": "tensor(float)"}
            assert session.outputs == {"y": "tensor(float)"}
            assert_array_equal(session.run({"x": x})["y"], -x)


def test_optimizer_is_off_unless_asked() -> None:
    levels = ort().GraphOptimizationLevel
    proto = model_of("Neg", tensor(1), tensor(1))
    for optimize, level in ((False, levels.ORT_DISABLE_ALL), (True, levels.ORT_ENABLE_ALL)):
        options = open_session(proto, optimize=optimize, threads=2)._session.get_session_options()
        assert options.graph_optimization_level == level
        assert options.use_deterministic_compute
        assert options.intra_op_num_threads == 2


def open_or_skip(model: Any, **options: Any) -> Session:
    """Open a session; skip where this version of ONNX Runtime lacks a kernel for the type."""
    try:
        return open_session(model, **options)
    except SessionError as e:
        if "NOT_IMPLEMENTED" not in str(e):
            raise
        pytest.skip(str(e))


FLOATS = {
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
}
INTEGERS = {TensorProto.INT4: ml_dtypes.int4, TensorProto.UINT4: ml_dtypes.uint4}


@pytest.mark.parametrize("elem", FLOATS)
def test_narrow_floats_in_and_out(elem: int) -> None:
    x = np.array([[0, 0.5, -1], [2, -3, 448]]).astype(FLOATS[elem])
    with open_session(model_of("Identity", tensor(elem), tensor(elem))) as session:
        for fed in (x, x.view(np.uint16 if elem == TensorProto.BFLOAT16 else np.uint8)):
            y = session.run({"x": fed})["y"]
            assert y.dtype == x.dtype
            assert_array_equal(y.astype(np.float32), x.astype(np.float32))


@pytest.mark.parametrize("elem", INTEGERS)
@pytest.mark.parametrize("shape", [(2, 3), (5,), (), (0, 3), (1, 1, 7)])
def test_four_bit_integers_in_and_out(elem: int, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    low = 0 if elem == TensorProto.UINT4 else -8
    values = (np.arange(size) * 5 % 16 + low).reshape(shape)
    x = values.astype(INTEGERS[elem])
    into = model_of("Cast", tensor(elem, shape), tensor(TensorProto.INT32, shape), to=6)
    with open_or_skip(into) as session:
        assert_array_equal(session.run({"x": x})["y"], values)
    out = model_of("Cast", tensor(TensorProto.INT32, shape), tensor(elem, shape), to=elem)
    with open_or_skip(out) as session:
        y = session.run({"x": values.astype(np.int32)})["y"]
        assert y.dtype == x.dtype
        assert_array_equal(y.astype(np.int32), values)


@pytest.mark.parametrize(
    "value",
    [
        np.array([["a", "", "ß"]] * 2),
        np.array([["a", "", "ß"]] * 2, object),
        np.array([[b"a", b"", b"c"]] * 2),
    ],
    ids=["unicode", "object", "bytes"],
)
def test_strings(value: np.ndarray) -> None:
    with open_session(model_of("Identity", tensor(8), tensor(8))) as session:
        y = session.run({"x": value})["y"]
    assert y.dtype == object
    want = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in value.tolist()]
    assert y.tolist() == want


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3)])
def test_ordinary_tensors(dtype: Any, shape: tuple[int, ...]) -> None:
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = (np.arange(int(np.prod(shape))).reshape(shape) % 2).astype(dtype)
    with open_session(model_of("Identity", tensor(elem, shape), tensor(elem, shape))) as session:
        y = session.run({"x": x})["y"]
        assert y.dtype == x.dtype
        assert_array_equal(y, x)
        if shape == (2, 3):
            strided = np.zeros((3, 2), dtype).T
            assert_array_equal(session.run({"x": strided})["y"], strided)


def test_sequences_optionals_and_maps() -> None:
    x = np.ones((2, 3), np.float32)
    sequence = helper.make_sequence_type_proto(tensor(1, None))
    with open_session(model_of("Identity", sequence, sequence)) as session:
        assert session.inputs == {"x": "seq(tensor(float))"}
        for fed in ([x, x[:1]], [], (x,)):
            y = session.run({"x": fed})["y"]
            assert len(y) == len(fed)
            for got, want in zip(y, fed, strict=True):
                assert_array_equal(got, want)
    strings = helper.make_sequence_type_proto(tensor(8, None))
    with open_session(model_of("Identity", strings, strings)) as session:
        assert session.run({"x": [np.array(["a", "b"])]})["y"][0].tolist() == ["a", "b"]
    optional = helper.make_optional_type_proto(tensor(1))
    with open_session(model_of("Identity", optional, optional)) as session:
        assert_array_equal(session.run({"x": x})["y"], x)
        assert session.run({"x": None}) == {"y": None}
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, tensor(1, ()))
    )
    zipped = model_of("ZipMap", tensor(1), maps, domain="ai.onnx.ml", classlabels_int64s=[4, 5, 6])
    with open_session(zipped) as session:
        assert session.run({"x": x})["y"] == [{4: 1.0, 5: 1.0, 6: 1.0}] * 2
    one = helper.make_map_type_proto(TensorProto.INT64, tensor(1, ()))
    vector = model_of(
        "DictVectorizer", one, tensor(1, (1, 3)), domain="ai.onnx.ml", int64_vocabulary=[4, 5, 6]
    )
    with open_session(vector) as session:
        assert_array_equal(session.run({"x": {4: 1.0, 6: 2.0}})["y"], [[1, 0, 2]])


def test_sequence_beside_an_output_numpy_lacks_is_refused_clearly() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("SequenceLength", ["s"], ["n"]),
            helper.make_node("Cast", ["n"], ["y"], to=TensorProto.BFLOAT16),
        ],
        "g",
        [helper.make_value_info("s", helper.make_sequence_type_proto(tensor(1, None)))],
        [helper.make_value_info("y", tensor(TensorProto.BFLOAT16, ()))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with open_session(model) as session, pytest.raises(SessionError, match="'s' is no tensor"):
        session.run({"s": [np.ones(2, np.float32)]})


def test_only_the_outputs_asked_for() -> None:
    model = ir.parse_text(
        HEADER + "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x)  z = Abs(x) }"
    )
    with open_session(model) as session:
        assert list(session.run({"x": np.ones(2, np.float32)}, outputs=["z"])) == ["z"]


def test_large_weights_are_not_copied() -> None:
    # The session computes on the model's own array, so that a change of it shows.
    weights = np.eye(256, dtype=np.float32)
    model = matmul(weights)
    value = model.graph.initializers["w"]
    shared = weights.copy()
    value.const_value = ir.tensor(shared, name="w")
    with open_session(model) as session:
        x = np.ones((1, 256), np.float32)
        assert_array_equal(session.run({"x": x})["y"], x)
        shared *= 3
        assert_array_equal(session.run({"x": x})["y"], 3 * x)


def test_lent_weights_outlive_the_model() -> None:
    model = matmul(np.eye(512, dtype=np.float32))
    model.graph.initializers["w"].const_value = ir.tensor(2 * np.eye(512, dtype=np.float32))
    session = open_session(model)
    del model
    gc.collect()
    x = np.ones((1, 512), np.float32)
    assert_array_equal(session.run({"x": x})["y"], 2 * x)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_by_the_weights() -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    size = 4096
    weights = np.ones((size, size), np.float32)  # 64 MiB
    model = matmul(weights)
    model.graph.initializers["w"].const_value = ir.tensor(weights, name="w")
    gc.collect()
    before = anonymous()
    with open_session(model) as session:
        y = session.run({"x": np.ones((1, size), np.float32)})["y"]
        assert anonymous() - before < 32 * 1024
    assert y[0, 0] == size


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.float16,
        np.float64,
        np.int64,
        np.uint8,
        ml_dtypes.bfloat16,
        ml_dtypes.int4,
        ml_dtypes.float8_e4m3fn,
    ],
    ids=lambda d: np.dtype(d).name,
)
def test_large_weights_of_every_type(dtype: Any, optimize: bool) -> None:
    values = (np.arange(400_000) % 7).reshape(400, 1000)
    weights = values.astype(dtype)
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "f"], ["y"]),
        ],
        "g",
        [helper.make_value_info("x", tensor(1, (1,)))],
        [helper.make_value_info("y", tensor(1, (400, 1000)))],
        [numpy_helper.from_array(weights, "w")],
    )
    assert graph.initializer[0].data_type == elem
    imports = [helper.make_opsetid("", 21)]
    model = ir.load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    with open_or_skip(model, optimize=optimize) as session:
        y = session.run({"x": np.zeros(1, np.float32)})["y"]
    assert_array_equal(y, values)


def test_weights_wanted_while_the_graph_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    # A shape is read by shape inference, which cannot see lent data: then nothing is lent.
    monkeypatch.setattr(sessions, "_INLINE_BYTES", 1)
    model = ir.parse_text(
        HEADER + "g (float[2,6] x) => (float[3,4] y) <int64[2] s = {3, 4}> { y = Reshape(x, s) }"
    )
    with open_session(model) as session:
        assert session.run({"x": np.ones((2, 6), np.float32)})["y"].shape == (3, 4)


def test_large_weight_used_in_a_branch() -> None:
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["x", "w"], [f"{op}_out"])],
            op,
            [],
            [helper.make_value_info(f"{op}_out", tensor(1, None))],
        )
        for op in ("Add", "Sub")
    ]
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1])],
        "g",
        [
            helper.make_value_info("c", tensor(TensorProto.BOOL, ())),
            helper.make_value_info("x", tensor(1, (50_000,))),
        ],
        [helper.make_value_info("y", tensor(1, None))],
        [numpy_helper.from_array(np.ones(50_000, np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 21)]
    model = ir.load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    with open_session(model) as session:
        x = np.ones(50_000, np.float32)
        assert session.run({"c": np.array(True), "x": x})["y"][0] == 2
        assert session.run({"c": np.array(False), "x": x})["y"][0] == 0


def test_large_default_of_an_input_can_be_overridden() -> None:
    proto = model_of(
        "Add",
        tensor(1, (50_000,)),
        tensor(1, (50_000,)),
        initializers=[numpy_helper.from_array(np.ones(50_000, np.float32), "w")],
        more=("w",),
    )
    proto.graph.input.append(helper.make_value_info("w", tensor(1, (50_000,))))
    with open_session(ir.load(proto)) as session:
        assert session.inputs == {"x": "tensor(float)"}
        x = np.zeros(50_000, np.float32)
        assert session.run({"x": x})["y"][0] == 1
        assert session.run({"x": x, "w": x + 5})["y"][0] == 5


def test_mapped_weights(tmp_path: Path) -> None:
    proto = model_of(
        "MatMul",
        tensor(1, ("N", 300)),
        tensor(1, ("N", 300)),
        initializers=[numpy_helper.from_array(np.eye(300, dtype=np.float32) * 5, "w")],
        more=("w",),
    )
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    model = ir.load(tmp_path / "m.onnx")
    x = np.ones((2, 300), np.float32)
    for optimize in (False, True):
        with open_session(model, optimize=optimize) as session:
            assert_array_equal(session.run({"x": x})["y"], 5 * x)


def test_a_run_can_be_stopped() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["a", "a"], ["b"])],
        "body",
        [
            helper.make_value_info("i", tensor(7, ())),
            helper.make_value_info("c", tensor(TensorProto.BOOL, ())),
            helper.make_value_info("a", tensor(1, ())),
        ],
        [
            helper.make_value_info("d", tensor(TensorProto.BOOL, ())),
            helper.make_value_info("b", tensor(1, ())),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
        "g",
        [helper.make_value_info("n", tensor(7, ())), helper.make_value_info("x", tensor(1, ()))],
        [helper.make_value_info("y", tensor(1, ()))],
    )
    imports = [helper.make_opsetid("", 21)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    with open_session(proto) as session:
        x = np.array(0, np.float32)
        started = time.perf_counter()
        with pytest.raises(SessionError):
            session.run({"n": np.array(10**12), "x": x}, timeout=0.1)
        assert time.perf_counter() - started < 20
        assert session.run({"n": np.array(3), "x": x}, timeout=60)["y"] == 0
