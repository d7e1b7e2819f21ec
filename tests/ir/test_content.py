from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import GraphOptError, ir
from graphopt.ir.content import Content, adopt_weights, same_content


def tensor(proto: TensorProto) -> ir.TensorProtocol:
    """A tensor as a loaded model holds it."""
    node = helper.make_node("Identity", [proto.name], ["y"])
    info = helper.make_tensor_value_info("y", proto.data_type, proto.dims)
    graph = helper.make_graph([node], "g", [], [info], [proto])
    imports = [helper.make_opsetid("", 24)]
    model = ir.load(helper.make_model(graph, opset_imports=imports, ir_version=11))
    found = model.graph.initializers[proto.name].const_value
    assert found is not None
    return found


def model(path: Path, **weights: np.ndarray) -> ir.Model:  # type: ignore[type-arg]
    """A model whose weights lie in a file."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [n], [f"y_{n}"]) for n in weights],
        "g",
        [],
        [helper.make_tensor_value_info(f"y_{n}", 1, w.shape) for n, w in weights.items()],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path, save_as_external_data=True, location=path.stem, size_threshold=0)
    return ir.load(path)


def weight(m: ir.Model, name: str) -> ir.TensorProtocol:
    found = m.graph.initializers[name].const_value
    assert found is not None
    return found


BIG = np.arange(700_000, dtype=np.float32)


def test_read_and_chunks(tmp_path: Path) -> None:
    mapped = weight(model(tmp_path / "m.onnx", w=BIG), "w")
    inline = tensor(numpy_helper.from_array(BIG, "w"))
    for each in (mapped, inline):
        content = Content(each)
        assert content.nbytes == BIG.nbytes
        assert content.read(8, 4).tobytes() == BIG[2].tobytes()
        assert content.read(BIG.nbytes - 4, 100).tobytes() == BIG[-1].tobytes()
        pieces = [c.tobytes() for c in content.chunks()]
        assert len(pieces) == 3
        assert b"".join(pieces) == BIG.tobytes()


def test_file_that_was_replaced(tmp_path: Path) -> None:
    """The map still shows what was loaded; the file of that name does not."""
    mapped = weight(model(tmp_path / "m.onnx", w=BIG), "w")
    other = tmp_path / "other"
    other.write_bytes(b"\0" * BIG.nbytes)
    other.replace(tmp_path / "m")
    assert Content(mapped).read(8, 4).tobytes() == BIG[2].tobytes()


def test_file_that_goes_away_while_it_is_read(tmp_path: Path) -> None:
    content = Content(weight(model(tmp_path / "m.onnx", w=BIG), "w"))
    (tmp_path / "m").write_bytes(b"short")
    with pytest.raises(GraphOptError, match="become shorter"):
        content.read(0, 100)
    (tmp_path / "m").unlink()
    with pytest.raises(GraphOptError, match="cannot be read any more"):
        content.read(0, 100)


def test_packed_types() -> None:
    four_bits = tensor(helper.make_tensor("w", TensorProto.INT4, [3], [1, -2, 3]))
    assert Content(four_bits).read(0, 9).tobytes() == bytes([0xE1, 0x03])
    assert Content(tensor(helper.make_tensor("w", TensorProto.FLOAT, [], [1.0]))).nbytes == 4
    assert Content(tensor(numpy_helper.from_array(np.empty((0, 3)), "w"))).nbytes == 0


def test_strings_have_no_bytes() -> None:
    with pytest.raises(ValueError, match="no fixed size"):
        Content(tensor(helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])))


def test_same_content(tmp_path: Path) -> None:
    mapped = weight(model(tmp_path / "m.onnx", w=BIG), "w")
    inline = tensor(numpy_helper.from_array(BIG, "v"))
    changed = BIG.copy()
    changed[-1] += 1
    assert same_content(mapped, mapped)
    assert same_content(mapped, inline)
    assert not same_content(mapped, tensor(numpy_helper.from_array(changed, "w")))
    assert not same_content(inline, tensor(numpy_helper.from_array(BIG.reshape(2, -1), "w")))
    assert not same_content(inline, tensor(numpy_helper.from_array(BIG.view(np.int32), "w")))
    zeros = [tensor(numpy_helper.from_array(np.float32(v), "w")) for v in (0.0, -0.0)]
    assert not same_content(*zeros)


def test_same_strings() -> None:
    def text(value: bytes) -> ir.TensorProtocol:
        return tensor(
            TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[value])
        )

    assert same_content(text(b"a"), text(b"a"))
    assert not same_content(text(b"a"), text(b"a\0"))


def test_adopt_weights(tmp_path: Path) -> None:
    source = model(tmp_path / "a.onnx", w=BIG, v=BIG[:10], u=BIG[:5])
    (tmp_path / "b").mkdir()
    other = model(tmp_path / "b" / "b.onnx", w=BIG, v=BIG[10:20], t=BIG[:5])
    assert not adopt_weights(other, source)
    assert weight(other, "w") is weight(source, "w")
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    ir.save(other, tmp_path / "c.onnx", external_data=True)
    back = ir.load(tmp_path / "c.onnx")
    for name, values in (("w", BIG), ("v", BIG[10:20]), ("t", BIG[:5])):
        np.testing.assert_array_equal(weight(back, name).numpy(), values)


def test_adopt_all_weights(tmp_path: Path) -> None:
    source = model(tmp_path / "a.onnx", w=BIG, v=BIG[:10])
    assert adopt_weights(model(tmp_path / "b.onnx", v=BIG[:10]), source)
