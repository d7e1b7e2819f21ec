"""The committed reference models and samples are what their manifest says."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

FOLDER = Path(__file__).parents[2] / "models"
MANIFEST: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (FOLDER / "manifest.json").read_text("utf-8")
)
MODELS = MANIFEST["models"]
SAMPLES = MANIFEST["samples"]

# What makes each model worth having; an export that lost it would make the tests on it hollow.
CHARACTER = {
    "digits_vgg": {"Conv", "BatchNormalization", "MaxPool", "Gemm", "Shape", "Gather"},
    "digits_resnet": {"Conv", "BatchNormalization", "Slice", "Pad", "ConstantOfShape", "Shape"},
    "digits_mobilenet": {"BatchNormalization", "Clip", "HardSwish", "HardSigmoid", "Mul"},
    "digits_transformer": {"LayerNormalization", "Softmax", "Erf", "MatMul", "Shape", "Expand"},
    "digits_lstm": {"LSTM", "If", "Loop", "Shape", "ConstantOfShape"},
}


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def value_spec(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        "shape": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    }


def images(sample: str) -> npt.NDArray[np.float32]:
    with np.load(FOLDER / SAMPLES[sample]["file"]) as arrays:
        assert arrays.files == ["image"]
        loaded: npt.NDArray[np.float32] = arrays["image"]
    return loaded


def labels() -> npt.NDArray[np.int64]:
    loaded: npt.NDArray[np.int64] = np.load(FOLDER / SAMPLES["digits_test_labels"]["file"])
    return loaded


def logits(name: str, feed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(
        FOLDER / MODELS[name]["file"], providers=["CPUExecutionProvider"]
    )
    result: npt.NDArray[np.float32] = session.run(["logits"], {"image": feed})[0]
    return result


def test_the_folder_holds_what_the_manifest_lists() -> None:
    listed = {entry["file"] for section in MANIFEST.values() for entry in section.values()}
    present = {path.name for path in FOLDER.iterdir() if path.suffix in {".onnx", ".npz", ".npy"}}
    assert present == listed
    assert MODELS.keys() == CHARACTER.keys()


@pytest.mark.parametrize("entry", [*MODELS.values(), *SAMPLES.values()], ids=lambda e: e["file"])
def test_file_is_the_recorded_one(entry: dict[str, Any]) -> None:
    content = (FOLDER / entry["file"]).read_bytes()
    assert len(content) == entry["bytes"] < 1_000_000
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("name", MODELS)
def test_model_is_as_described(name: str) -> None:
    entry = MODELS[name]
    model = onnx.load(FOLDER / entry["file"])
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", entry["opset"])]
    assert model.ir_version == entry["ir_version"]
    assert [value_spec(value) for value in model.graph.input] == entry["inputs"]
    assert [value_spec(value) for value in model.graph.output] == entry["outputs"]
    assert entry["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch", 1, 32, 32]},
    ]
    operators = Counter(node.op_type for node in nodes(model.graph))
    assert operators == entry["operators"]
    assert operators.keys() >= CHARACTER[name]
    assert (FOLDER.parent / entry["source"]).is_file()


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_is_the_recorded_one(name: str) -> None:
    test = MODELS[name]["test"]
    answers = logits(name, images("digits_test")).argmax(axis=1)
    assert len(answers) == test["count"]
    assert int((answers == labels()).sum()) == test["correct"]
    assert test["accuracy"] == pytest.approx(test["correct"] / test["count"], abs=1e-6)
    assert test["accuracy"] >= 0.97


@pytest.mark.parametrize("name", MODELS)
def test_images_of_a_batch_do_not_influence_each_other(name: str) -> None:
    feed = images("digits_test")[:5]
    together = logits(name, feed)
    apart = np.concatenate([logits(name, feed[:1]), logits(name, feed[1:])])
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-4)


def test_lstm_takes_images_of_either_range() -> None:
    feed = images("digits_test")[:5]
    unit, bytes_ = logits("digits_lstm", feed), logits("digits_lstm", feed * 255)
    np.testing.assert_allclose(unit, bytes_, rtol=0, atol=1e-4)


def test_samples_are_images_and_labels() -> None:
    for sample, count in (("digits_test", 450), ("digits_calib", 128)):
        loaded = images(sample)
        assert loaded.dtype == np.float32
        assert loaded.shape == (count, 1, 32, 32)
        assert loaded.min() == 0
        assert loaded.max() == 1
    assert labels().dtype == np.int64
    assert np.bincount(labels()).tolist() == [43, 46, 43, 47, 48, 45, 47, 45, 41, 45]


def test_samples_come_from_the_dataset() -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("models_data", FOLDER / "_data.py")
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    data = source.digits()
    np.testing.assert_array_equal(images("digits_test"), data.test_images)
    np.testing.assert_array_equal(labels(), data.test_labels)
    np.testing.assert_array_equal(images("digits_calib"), data.train_images[data.calibration])
    assert len(np.unique(data.calibration)) == 128


def test_readme_repeats_the_manifest() -> None:
    lines = (FOLDER / "README.md").read_text("utf-8").splitlines()
    rows = {}
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 7:
            rows[cells[0].strip("`")] = cells[2:]
    for name, entry in MODELS.items():
        test = entry["test"]
        assert rows[name] == [
            str(entry["opset"]),
            str(sum(entry["operators"].values())),
            f"{entry['bytes'] / 1000:.0f}",
            str(test["correct"]),
            f"{test['accuracy']:.2%}".replace("%", " %"),
        ]
