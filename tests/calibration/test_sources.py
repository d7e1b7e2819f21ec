"""Sample data: what is read, in which batches, and what is said about data that do not fit."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from onnx import numpy_helper

from graphopt import ir
from graphopt.calibration import Samples, load_data
from graphopt.errors import CalibrationError
from graphopt.runtime.oracle import Oracle

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'


def model(inputs: str) -> ir.Model:
    return ir.parse_text(
        HEADER + f"g ({inputs}) => (float[1] y) <float[1] c = {{1}}> {{ y = Neg(c) }}"
    )


IMAGE = model("float[N,3] image, int64[N] label")


def image_data(count: int) -> dict[str, np.ndarray]:
    return {
        "image": np.arange(count * 3, dtype=np.float32).reshape(count, 3),
        "label": np.arange(count),
    }


def joined(samples: Samples, name: str) -> np.ndarray:
    return np.concatenate([feeds[name] for feeds in samples])


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return tmp_path / "samples.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_samples_along_axis_0(npz: Path, save: Any, order: Any) -> None:
    data = image_data(20)
    save(npz, image=np.asarray(data["image"], order=order), label=data["label"])
    samples = load_data(npz, IMAGE)
    assert (len(samples), samples.count, samples.source) == (2, 20, str(npz))
    for _ in range(2):  # again and again
        batches = list(samples)
        assert [b["image"].shape for b in batches] == [(8, 3), (8, 3)]
        assert_array_equal(joined(samples, "image"), data["image"][:16])
        assert_array_equal(joined(samples, "label"), data["label"][:16])
    assert samples.remarks == [f"{npz}: the last 4 samples do not fill a batch of 8"]
    assert len(load_data(npz, IMAGE, batch_size=5)) == 4
    assert load_data(npz, IMAGE, batch_size=5).remarks == []
    assert [b["image"].shape[0] for b in load_data(npz, IMAGE, batch_size=50)] == [20]


@given(st.integers(1, 30), st.integers(1, 12))
def test_batches_hold_every_sample_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("npz") / "s.npz"
    data = image_data(count)
    np.savez(path, **data)
    samples = load_data(path, IMAGE, batch_size=size)
    kept = joined(samples, "image")
    assert_array_equal(kept, data["image"][: len(kept)])
    assert count - len(kept) < min(size, count)
    assert len(samples) == len(list(samples))


def test_fixed_batch(npz: Path) -> None:
    np.savez(npz, image=np.zeros((7, 3), np.float32))
    fixed = model("float[2,3] image")
    samples = load_data(npz, fixed, batch_size=5)
    assert [b["image"].shape for b in samples] == [(2, 3)] * 3
    assert "last 1 samples" in samples.remarks[0]
    with pytest.raises(CalibrationError, match="takes 8 samples at a time, there are 7"):
        load_data(npz, model("float[8,3] image"))


def test_axis_of_samples_in_front(npz: Path) -> None:
    np.savez(
        npz,
        x=np.arange(24, dtype=np.float32).reshape(4, 2, 3),
        rate=np.array([8, 16, 8, 16]),
        state=np.zeros((4, 5), np.float32),
    )
    samples = load_data(npz, model("float[2,3] x, int64 rate, float[1,5] state"))
    shapes = [{k: v.shape for k, v in b.items()} for b in samples]
    assert shapes == [{"x": (2, 3), "rate": (), "state": (1, 5)}] * 4
    assert [int(b["rate"]) for b in samples] == [8, 16, 8, 16]


def test_one_value_for_all_samples(npz: Path) -> None:
    np.savez(npz, image=np.zeros((9, 3), np.float32), rate=np.array(16000))
    samples = load_data(npz, model("float[N,3] image, int64 rate"), batch_size=3)
    assert [int(b["rate"]) for b in samples] == [16000] * 3


def test_values_rather_than_model_and_other_types(npz: Path) -> None:
    np.savez(npz, s=np.array(["a", "bc"]), b=np.array([True, False]))
    declared = model("string[N] s, bool[N] b")
    (batch,) = load_data(npz, ir.inputs(declared))
    assert batch["s"].tolist() == ["a", "bc"]
    assert batch["b"].dtype == bool


def test_lossless_conversions_are_remarked(npz: Path) -> None:
    np.savez(npz, image=np.ones((2, 3)), label=np.arange(2, dtype=np.int32))
    samples = load_data(npz, IMAGE)
    assert samples.remarks == [
        "input 'image': float64 was converted to float32",
        "input 'label': int32 was converted to int64",
    ]
    for _ in range(2):
        (batch,) = samples
    assert (batch["image"].dtype, batch["label"].dtype) == (np.float32, np.int64)
    assert len(samples.remarks) == 2
    narrow = model("bfloat16[N,3] image, int8[N] label")
    (batch,) = load_data(npz, narrow)
    assert batch["image"].dtype == ml_dtypes.bfloat16
    assert batch["label"].dtype == np.int8


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"image": np.zeros((2, 3), np.uint8)}, "'image' takes float32, not uint8"),
        ({"image": np.array([["a"] * 3] * 2)}, "'image' takes float32, not <U1"),
        ({"label": np.zeros(2, np.float32)}, "'label' takes int64, not float32"),
        ({"label": np.zeros(2, bool)}, "'label' takes int64, not bool"),
        (
            {"image": np.zeros((2, 4), np.float32)},
            r"sample 0 to 1: .* takes \[N, 3\], not \[2, 4\]",
        ),
        ({"image": np.zeros((2, 3, 1, 1), np.float32)}, r"takes \[N, 3\]"),
        ({"image": np.float32([[0] * 3, [0, 1, np.nan]])}, r"sample 0 to 1: .* is nan at \[1, 2\]"),
        ({"image": np.float32([[0] * 3, [0, 1, np.inf]])}, r"is inf at \[1, 2\]"),
        ({"image": np.full((2, 3), 1e300)}, "do not fit into float32"),
        ({"label": np.zeros(3, np.int64)}, "different numbers of samples"),
        ({"image": np.zeros((0, 3), np.float32), "label": np.zeros(0, int)}, "holds no samples"),
        ({"image": np.array([[1, None, "x"]] * 2, object)}, "'image' holds pickled Python objects"),
        ({"image": np.zeros(2, [("a", "f4")])}, "'image' is a structured array"),
    ],
)
def test_data_that_do_not_fit(npz: Path, data: dict[str, Any], words: str) -> None:
    np.savez(npz, **{**image_data(2), **data})
    with pytest.raises(CalibrationError, match=words) as raised:
        list(load_data(npz, IMAGE))
    assert str(npz) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_integers_that_do_not_fit(npz: Path) -> None:
    np.savez(npz, label=np.array([1, 300]))
    with pytest.raises(CalibrationError, match="'label' do not fit into uint8"):
        list(load_data(npz, model("uint8[N] label")))


def test_names(npz: Path) -> None:
    np.savez(npz, images=np.zeros((2, 3), np.float32), label=np.zeros(2, int))
    with pytest.raises(CalibrationError, match=r"no array for input 'image', .*mean.* 'images'"):
        load_data(npz, IMAGE)
    np.savez(npz, **image_data(2), truth=np.zeros(5))
    assert load_data(npz, IMAGE).remarks == ["array 'truth' is no input and is not used"]
    np.savez(npz, np.zeros((2, 3), np.float32))
    with pytest.raises(CalibrationError, match="it holds 'arr_0'"):
        load_data(npz, IMAGE)


def test_no_data(tmp_path: Path, npz: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        load_data(npz, IMAGE)
    with pytest.raises(CalibrationError, match="does not exist"):
        load_data(tmp_path / "nowhere", IMAGE)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(CalibrationError, match=r"is no \.npz or \.npy file"):
        load_data(tmp_path / "x.csv", IMAGE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="holds no samples"):
        load_data(tmp_path / "empty", IMAGE)
    np.savez(npz, image=np.float32(1), label=np.int64(1))
    with pytest.raises(CalibrationError, match="no array has an axis of samples"):
        load_data(npz, model("float image, int64 label"))
    with pytest.raises(CalibrationError, match="no inputs"):
        load_data(npz, model(""))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_and_damaged_archives(npz: Path, save: Any) -> None:
    rng = np.random.default_rng(0)
    save(npz, image=rng.standard_normal((500, 3)).astype(np.float32), label=np.arange(500))
    whole = npz.read_bytes()
    for data in (whole[:100], whole[: len(whole) // 2], whole[:-10], b"", b"PK no"):
        npz.write_bytes(data)
        with pytest.raises(CalibrationError, match=r"truncated or not an \.npz archive"):
            list(load_data(npz, IMAGE))
    npz.write_bytes(whole)
    assert len(list(load_data(npz, IMAGE))) == 62


def test_damage_is_noticed_at_the_latest_when_everything_is_read(npz: Path) -> None:
    np.savez(npz, image=np.ones((500, 3), np.float32), label=np.arange(500))
    damaged = bytearray(npz.read_bytes())
    damaged[-1000] ^= 1  # a label that is not read, as it fills no batch, or is just another number
    npz.write_bytes(damaged)
    with pytest.raises(CalibrationError, match="CRC"):
        list(load_data(npz, IMAGE))


def test_file_that_disappears(npz: Path) -> None:
    np.savez(npz, **image_data(20))
    samples = load_data(npz, IMAGE)
    npz.unlink()
    with pytest.raises(CalibrationError, match="does not exist"):
        list(samples)


def test_inputs_with_different_first_dimensions(npz: Path) -> None:
    np.savez(npz, a=np.zeros((6, 3), np.float32), b=np.zeros((6, 3), np.float32))
    with pytest.raises(CalibrationError, match="differ in their first dimension"):
        load_data(npz, model("float[2,3] a, float[3,3] b"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_only_a_batch_is_in_memory(npz: Path, save: Any) -> None:
    save(npz, x=np.zeros((256, 16384), np.float32))  # 16 MiB
    samples = load_data(npz, model("float[N,16384] x"), batch_size=4)
    tracemalloc.start()
    try:
        total = sum(batch["x"].size for batch in samples)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 256 * 16384
    assert peak < 6 * 2**20


def test_abandoned_iteration_closes_the_file(npz: Path) -> None:
    np.savez(npz, **image_data(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            iterator = iter(load_data(npz, IMAGE))
            next(iterator)
            del iterator


def test_folder_of_archives_in_natural_order(tmp_path: Path) -> None:
    for i in range(12):
        np.savez(tmp_path / f"batch{i}.npz", **image_data(i + 1))
    samples = load_data(tmp_path, IMAGE)
    assert [len(b["label"]) for b in samples] == list(range(1, 13))
    assert (len(samples), samples.count) == (12, None)
    np.savez(tmp_path / "batch3.npz", image=np.zeros((2, 3), np.float32))
    with pytest.raises(CalibrationError, match=r"batch3\.npz has no array for input 'label'"):
        load_data(tmp_path, IMAGE)


def write_pb(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(array, list):
        proto = numpy_helper.from_list(array)
    elif array is None:
        proto = onnx.OptionalProto(elem_type=onnx.OptionalProto.TENSOR)
    else:
        proto = numpy_helper.from_array(array, "some name")
    path.write_bytes(proto.SerializeToString())


def test_folders_of_protobuf_files(tmp_path: Path) -> None:
    for i in (0, 2, 10):
        folder = tmp_path / f"test_data_set_{i}"
        data = image_data(i + 1)
        write_pb(folder / "input_0.pb", data["image"])
        write_pb(folder / "input_1.pb", data["label"])
        write_pb(folder / "output_0.pb", np.zeros(1, np.float32))
    samples = load_data(tmp_path, IMAGE)
    assert [len(b["label"]) for b in samples] == [1, 3, 11]
    assert_array_equal(list(samples)[1]["image"], image_data(3)["image"])
    (one,) = load_data(tmp_path / "test_data_set_2", IMAGE)
    assert_array_equal(one["label"], np.arange(3))
    (tmp_path / "test_data_set_2" / "input_1.pb").unlink()
    with pytest.raises(
        CalibrationError, match=r"test_data_set_2: 1 files input_\*\.pb for 2 inputs"
    ):
        load_data(tmp_path, IMAGE)


def test_one_protobuf_file_per_batch_of_a_single_input(tmp_path: Path) -> None:
    for i in range(3):
        write_pb(tmp_path / f"{i}.pb", np.full((i + 1, 2), i, np.float32))
    assert [b["x"].shape for b in load_data(tmp_path, model("float[N,2] x"))] == [
        (1, 2),
        (2, 2),
        (3, 2),
    ]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.arange(6, dtype=np.float64),
        np.arange(6).astype(ml_dtypes.bfloat16),
        np.arange(5).astype(ml_dtypes.int4),
        np.array([1, -1], np.int8),
        np.array([True, False]),
        np.array(["a", "ß"], object),
        np.array(5, np.int64),
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda a: str(a.dtype),
)
def test_protobuf_files_of_every_type(tmp_path: Path, array: np.ndarray) -> None:
    write_pb(tmp_path / "input_0.pb", array)
    elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    name = onnx.TensorProto.DataType.Name(elem).lower()
    shape = ",".join(map(str, array.shape))
    (batch,) = load_data(tmp_path, model(f"{name}[{shape}] x" if shape else f"{name} x"))
    assert batch["x"].dtype == array.dtype
    assert_array_equal(batch["x"].astype(object), array.astype(object))


def test_protobuf_sequences_and_optionals(tmp_path: Path) -> None:
    write_pb(tmp_path / "input_0.pb", [np.ones(2, np.float32), np.zeros(3, np.float32)])
    write_pb(tmp_path / "input_1.pb", None)
    declared = model("seq(float[n]) s, optional(float[2]) o")
    (batch,) = load_data(tmp_path, declared)
    assert [v.shape for v in batch["s"]] == [(2,), (3,)]
    assert batch["o"] is None
    proto = numpy_helper.from_optional(np.ones(2, np.float32))
    (tmp_path / "input_1.pb").write_bytes(proto.SerializeToString())
    (batch,) = load_data(tmp_path, declared)
    assert_array_equal(batch["o"], [1, 1])


@pytest.mark.parametrize("inputs", ["float[N,3] x", "seq(float[N]) x"])
def test_broken_protobuf_files(tmp_path: Path, inputs: str) -> None:
    path = tmp_path / "input_0.pb"
    write_pb(
        path, np.ones((50, 3), np.float32) if "seq" not in inputs else [np.ones(99, np.float32)]
    )
    whole = path.read_bytes()
    for data in (whole[:-7], whole[: len(whole) // 2], b"\xff" * 20, b"hello"):
        path.write_bytes(data)
        with pytest.raises(CalibrationError, match=r"input_0\.pb"):
            list(load_data(tmp_path, model(inputs)))
    path.write_bytes(whole)
    assert len(list(load_data(tmp_path, model(inputs)))) == 1


def test_samples_feed_the_oracle(npz: Path) -> None:
    declared = ir.parse_text(HEADER + "g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }")
    np.savez(npz, x=np.ones((20, 3)))
    oracle = Oracle(declared, data=load_data(npz, declared))
    assert oracle.feeds_summary["samples"] == 2
    assert oracle.feeds[0]["x"].shape == (8, 3)
