"""External data is mapped, moved and renewed without being read, and no source file is touched."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt import PassManager, ir
from graphopt.ir.external import MappedTensor
from graphopt.runtime.session import open_session

SIZE = 2048
HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def source(folder: Path, weights: int = 3) -> Path:
    """A model whose weights lie in one file written by onnx itself."""
    names = [f"w{i}" for i in range(weights)]
    terms = " ".join(f"t{i} = Add(x, w{i})" for i in range(weights))
    proto = parser.parse_model(
        f"{HEAD} g (float[{SIZE}] x) => (float[{SIZE}] y) {{ {terms}"
        f" y = Sum({', '.join(f't{i}' for i in range(weights))}) }}"
    )
    for i, name in enumerate(names):
        proto.graph.initializer.append(
            numpy_helper.from_array(np.full(SIZE, i + 1, np.float32), name)
        )
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def value(path: Path) -> float:
    """What the model computes for zeros, by ONNX Runtime reading the file itself."""
    return float(open_session(path).run({"x": np.zeros(SIZE, np.float32)})["y"][0])


def changed(path: Path) -> ir.Model:
    """The model with one new weight."""
    model = ir.load(path)
    model.graph.initializers["w0"].const_value = ir.tensor(np.full(SIZE, 10, np.float32), name="w0")
    return model


# Loading ----------------------------------------------------------------------------------------


def test_weights_are_views_of_one_read_only_map(tmp_path: Path) -> None:
    model = ir.load(source(tmp_path))
    arrays = [ir.array(v) for v in model.graph.initializers.values()]
    assert [a[0] for a in arrays] == [1.0, 2.0, 3.0]
    for a in arrays:
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 0
    assert all(isinstance(v.const_value, MappedTensor) for v in model.graph.initializers.values())
    assert ir.source_bytes(model) == 3 * 4 * SIZE + (tmp_path / "m.onnx").stat().st_size


def test_the_map_outlives_the_file(tmp_path: Path) -> None:
    path = source(tmp_path)
    model = ir.load(path)
    (tmp_path / "weights.bin").unlink()
    assert ir.array(model.graph.initializers["w2"])[0] == 3.0
    assert ir.save(model, tmp_path / "out.onnx", external_data=True)
    assert value(tmp_path / "out.onnx") == 6.0


def test_another_file_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    path = source(tmp_path)
    model = ir.load(path)
    replacement = tmp_path / "new"
    replacement.write_bytes(bytes(3 * 4 * SIZE))
    replacement.replace(tmp_path / "weights.bin")
    ir.save(model, tmp_path / "out.onnx", external_data=True)
    assert value(tmp_path / "out.onnx") == 6.0


def test_constants_and_subgraphs_are_mapped_too(tmp_path: Path) -> None:
    graph = """g (float[4] x, bool c) => (float[4] y) {
        k = Constant<value = float[4] {1,2,3,4}>()
        y = If(c) <then_branch = t () => (float[4] p) <float[4] w = {1,2,3,4}> { p = Add(k, w) },
                   else_branch = e () => (float[4] q) {
                       q = Constant<value = float[4] {5,6,7,8}>() }> }"""
    proto = parser.parse_model(HEAD + graph)
    # onnx.save writes only weights of the main graph; the format allows all of them.
    branches = [a.g for a in proto.graph.node[1].attribute]
    tensors = [
        proto.graph.node[0].attribute[0].t,
        branches[0].initializer[0],
        branches[1].node[0].attribute[0].t,
    ]  # fmt: skip
    expected = [numpy_helper.to_array(t).tolist() for t in tensors]
    data = b"".join(numpy_helper.to_array(t).tobytes() for t in tensors)
    (tmp_path / "w.bin").write_bytes(data)
    for i, tensor in enumerate(tensors):
        dims, kind, name = list(tensor.dims), tensor.data_type, tensor.name
        tensor.Clear()
        tensor.dims[:], tensor.data_type, tensor.name = dims, kind, name
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "w.bin"), ("offset", 16 * i), ("length", 16)):
            tensor.external_data.add(key=key, value=str(text))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = ir.load(path)
    then, other = ir.subgraphs(model.graph[0])
    got = [model.graph.initializers["k"], then.initializers["w"], other.outputs[0]]
    assert [ir.array(v).tolist() for v in got] == expected
    (tmp_path / "w.bin").unlink()
    ir.save(model, tmp_path / "inline.onnx", external_data=False)
    out = open_session(tmp_path / "inline.onnx").run(
        {"x": np.zeros(4, np.float32), "c": np.array(False)}
    )
    assert out["y"].tolist() == expected[2]


PACKED = [ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.float4_e2m1fn, ml_dtypes.bfloat16, np.bool_]


@pytest.mark.parametrize("dtype", PACKED, ids=lambda d: np.dtype(d).name)
def test_small_types(dtype: Any, tmp_path: Path) -> None:
    data = np.resize([1, 0, 1], 4097).astype(dtype)
    kind = int(ir.DataType.from_numpy(data.dtype))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", kind, [4097])],
        [onnx_ir.to_proto(ir.tensor(data, name="w"))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ir.save(ir.load(proto), tmp_path / "a.onnx", external_data=True)
    again = ir.load(tmp_path / "a.onnx")
    ir.save(again, tmp_path / "b.onnx", external_data=True)
    for name in ("a", "b"):
        tensor = onnx.load(tmp_path / f"{name}.onnx").graph.initializer[0]
        assert onnx_ir.from_proto(tensor).numpy().tobytes() == data.tobytes()
    again = ir.load(tmp_path / "b.onnx")
    assert ir.array(again.graph.initializers["w"]).tobytes() == data.tobytes()


# Saving -----------------------------------------------------------------------------------------


def test_on_request(tmp_path: Path) -> None:
    graph = f"""g (float[{SIZE}] x) => (float[{SIZE}] y) <float[1] one = {{1}}> {{
        a = Add(x, w) y = Mul(a, one) }}"""
    proto = parser.parse_model(HEAD + graph)
    proto.graph.initializer.append(numpy_helper.from_array(np.full(SIZE, 4, np.float32), "w"))
    path = tmp_path / "out.onnx"
    assert ir.save(ir.load(proto), path, external_data=True) == [path, tmp_path / "out.onnx.data"]
    plain = onnx.load(path, load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in plain.graph.initializer}
    assert places["one"] == {}  # not worth a reference
    assert places["w"] == {"location": "out.onnx.data", "offset": "0", "length": str(4 * SIZE)}
    onnx.checker.check_model(str(path))
    assert value(path) == 4.0


def test_tensors_are_aligned_to_pages(tmp_path: Path) -> None:
    ir.save(changed(source(tmp_path)), tmp_path / "out.onnx", external_data=True)
    proto = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    offsets = [
        int(e.value) for t in proto.graph.initializer for e in t.external_data if e.key == "offset"
    ]
    assert len(offsets) == 3
    assert all(o % 4096 == 0 for o in offsets)


def test_nothing_to_put_there(tmp_path: Path) -> None:
    model = ir.parse_text(
        HEAD + "g (float[1] x) => (float[1] y) <float[1] w = {1}> { y = Add(x, w) }"
    )
    assert ir.save(model, tmp_path / "m.onnx", external_data=True) == [tmp_path / "m.onnx"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_strings_stay_inline(tmp_path: Path) -> None:
    words = np.array(["a long word"] * 500, object)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [500])],
        [numpy_helper.from_array(words, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ir.save(ir.load(proto), tmp_path / "m.onnx", external_data=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert open_session(tmp_path / "m.onnx").run({})["y"].tolist() == words.tolist()


def test_inline_on_request(tmp_path: Path) -> None:
    model = ir.load(source(tmp_path / "a"))
    path = tmp_path / "out.onnx"
    assert ir.save(model, path, external_data=False) == [path]
    assert value(path) == 6.0
    assert not list(onnx.load(path, load_external_data=False).graph.initializer[0].external_data)


def test_external_stays_external(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    assert len(ir.save(ir.load(source(tmp_path / "a")), path)) == 2
    assert value(path) == 6.0


def test_in_place_leaves_the_source_data_alone(tmp_path: Path) -> None:
    path = source(tmp_path)
    before = digests(tmp_path)
    shutil.copy(path, tmp_path / "copy.onnx")  # it refers to weights.bin as well
    kept = ir.load(path)
    ir.save(changed(path), path)
    assert value(path) == 15.0
    assert value(tmp_path / "copy.onnx") == 6.0
    after = digests(tmp_path)
    assert after["weights.bin"] == before["weights.bin"]
    assert sorted(after) == ["copy.onnx", "m.onnx", "m.onnx.data", "weights.bin"]
    ir.save(kept, tmp_path / "old.onnx")  # the model loaded before still has its weights
    assert value(tmp_path / "old.onnx") == 6.0


def test_a_data_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    """``NAME.data`` is what torch and others call theirs."""
    (tmp_path / "out.onnx.data").write_bytes(b"somebody's weights")
    _, data = ir.save(changed(source(tmp_path / "a")), tmp_path / "out.onnx")
    assert data != tmp_path / "out.onnx.data"
    assert (tmp_path / "out.onnx.data").read_bytes() == b"somebody's weights"
    assert value(tmp_path / "out.onnx") == 15.0


def test_again_and_again_in_place(tmp_path: Path) -> None:
    path = source(tmp_path)
    counts = []
    for _ in range(5):
        ir.save(changed(path), path)
        assert value(path) == 15.0
        counts.append(len(digests(tmp_path)))
    assert (
        max(counts) == counts[-1] <= 5
    )  # model, source, NAME.data, the present and the one before
    once = ir.load(path)
    for _ in range(4):
        ir.save(once, path)  # the very file that it maps is replaced each time
        assert value(path) == 15.0
    assert len(digests(tmp_path)) <= 5


def test_data_of_a_copy_survives(tmp_path: Path) -> None:
    path = source(tmp_path)
    for _ in range(2):
        ir.save(changed(path), path)
    shutil.copy(path, tmp_path / "backup.onnx")  # refers to a data file that we named
    for _ in range(3):
        ir.save(changed(path), path)
    assert value(tmp_path / "backup.onnx") == 15.0


def test_a_pipeline_keeps_the_maps(tmp_path: Path) -> None:
    path = source(tmp_path)
    before = digests(tmp_path)
    result = PassManager("O1", oracle="off").run(ir.load(path))
    ir.save(result.model, tmp_path / "out.onnx")
    assert value(tmp_path / "out.onnx") == 6.0
    assert before.items() <= digests(tmp_path).items()


def test_models_of_onnx_ir(tmp_path: Path) -> None:
    model = ir.load(onnx_ir.load(source(tmp_path / "a")))
    ir.save(model, tmp_path / "out.onnx")
    assert value(tmp_path / "out.onnx") == 6.0


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from graphopt import ir
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path(sys.argv[1])
ir.save(ir.load(folder / "small.onnx"), folder / "warm.onnx", external_data=True)
before = peak()
model = ir.load(folder / "m.onnx")
model.graph[0].name = "changed"
copy = ir.clone(model)
copy.graph[0].replace_input_with(0, copy.graph.inputs[0])
ir.infer_shapes(copy)
ir.nbytes(copy)
ir.save(copy, folder / "out.onnx", external_data=True)
print(peak() - before)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere"
)
def test_weights_do_not_enter_memory(tmp_path: Path) -> None:
    megabytes = 128
    source(tmp_path / "s", weights=1)
    (tmp_path / "s" / "m.onnx").rename(tmp_path / "small.onnx")
    (tmp_path / "s" / "weights.bin").rename(tmp_path / "weights.bin")
    count = megabytes * (1 << 18)
    proto = parser.parse_model(
        f"{HEAD} g (float[{count}] x) => (float[{count}] y) {{ y = Add(x, w) }}"
    )
    tensor = proto.graph.initializer.add(name="w", dims=[count], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="large.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(4 * count)
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 * 1024  # KiB
    assert (tmp_path / "out.onnx.data").stat().st_size == 4 * count
