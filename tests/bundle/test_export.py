from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import (
    CalibrationError,
    ExportError,
    Target,
    TargetError,
    UnsupportedFeature,
    VerificationError,
    ir,
    targets,
)
from graphopt.runtime.oracle import Oracle


def toy(*operators: str, **facts: object) -> Target:
    base = dataclasses.replace(
        targets.get("portable"),
        name="toy", operators=frozenset(operators), requirements=(), static_shapes=True,
    )  # fmt: skip
    return dataclasses.replace(base, **facts)  # type: ignore[arg-type]


def run_script(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, folder / "run.py"], capture_output=True, text=True, timeout=60, check=False
    )


def test_nnapi(tmp_path: Path, models_dir: Path) -> None:
    source = models_dir / "digits_mobilenet.onnx"
    result = graphopt.export(
        source, "nnapi", tmp_path / "out", data=models_dir / "digits_calib.npz"
    )
    assert result.manifest["violations"] == []
    assert result.manifest["inputs"] == [
        {"name": "image", "dtype": "float", "shape": [1, 1, 32, 32]}
    ]
    assert result.manifest["target"] == "nnapi"
    assert result.manifest["providers"][0]["name"] == "NnapiExecutionProvider"
    assert [run["oracle"]["verdict"] for run in result.manifest["runs"]] == ["equal", "equal"]
    assert result.manifest["runs"][1]["oracle"]["feeds"]["samples"] > 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == result.manifest
    exported = ir.load(tmp_path / "out" / "model.onnx")
    assert targets.check(exported, "nnapi") == []
    assert "HardSwish" not in {n.op_type for n in ir.all_nodes(exported)}
    done = run_script(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "logits: tensor(float) (1, 10)" in done.stdout
    assert "NnapiExecutionProvider is not in this build" in done.stderr


def test_the_source_stays_as_it_is(tmp_path: Path, plain: ir.Model) -> None:
    before = ir.dump(plain)
    graphopt.export(plain, "nnapi", tmp_path / "out")
    assert ir.dump(plain) == before


def test_shapes(tmp_path: Path, model: ir.Model) -> None:
    with pytest.raises(TargetError, match="give --shape x:N,3,H,W"):
        graphopt.export(model, toy("Relu"), tmp_path / "out")
    taken = ("GlobalAveragePool", "Flatten", "ReduceSum", "Mul", "Reshape")
    result = graphopt.export(
        model, toy(*taken), tmp_path / "out", shapes={"x": (2, -1, 8, 9), "s": (-1, 5)}
    )
    assert [v["shape"] for v in result.manifest["inputs"]] == [[2, 3, 8, 9], [2, 5]]
    assert result.manifest["outputs"][0]["shape"] == [2, 3]
    assert result.manifest["pipeline"].startswith('fix-shapes{dims="N=2"')
    assert run_script(tmp_path / "out").returncode == 0


def test_violations_keep_it_from_being_written(tmp_path: Path, plain: ir.Model) -> None:
    with pytest.raises(TargetError) as caught:
        graphopt.export(plain, toy("Add"), tmp_path / "out")
    assert "toy does not take all of the model, so nothing was written" in str(caught.value)
    assert "Relu" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    result = graphopt.export(plain, toy("Add"), tmp_path / "out", allow_violations=True)
    assert [v["operator"] for v in result.manifest["violations"]] == ["Relu"]


def test_what_is_merely_slow_is_written(tmp_path: Path, plain: ir.Model) -> None:
    slow = targets.Requirement("slow", lambda _node: "it takes its time", slow=True)
    result = graphopt.export(plain, toy("Relu", requirements=(slow,)), tmp_path / "out")
    assert [v["slow"] for v in result.manifest["violations"]] == [True]


def test_defaults_of_inputs_become_constants(tmp_path: Path) -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1,2] x, float[2,2] w = {1,2,3,4}) => (float[1,2] y) { y = MatMul(x, w) }
    """)
    result = graphopt.export(model, "nnapi", tmp_path / "out")
    assert [v["name"] for v in result.manifest["inputs"]] == ["x"]
    assert result.manifest["pipeline"].startswith("freeze-inputs,")
    open_to_all = graphopt.export(model, "cpu", tmp_path / "cpu")
    assert [v.name for v in open_to_all.model.graph.inputs] == ["x", "w"]


def test_weights_go_into_the_model_where_they_have_to(tmp_path: Path) -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1,2048] x) => (float[1,2048] y) <float[2048] w = {0}> { y = Add(x, w) }
    """)
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.arange(2048, dtype=np.float32), name="w")
    ir.save(model, tmp_path / "source.onnx", external_data=True)
    inline = graphopt.export(tmp_path / "source.onnx", "nnapi", tmp_path / "nnapi")
    assert [f.name for f in inline.files] == ["model.onnx", "manifest.json", "run.py"]
    beside = graphopt.export(tmp_path / "source.onnx", "cpu", tmp_path / "cpu")
    assert beside.files[1].name == "model.onnx.data"
    assert run_script(tmp_path / "cpu").returncode == 0


def test_half_precision_where_it_is_welcome(tmp_path: Path, models_dir: Path) -> None:
    source = models_dir / "digits_resnet.onnx"
    result = graphopt.export(source, "cuda", tmp_path / "out", passes="O2,convert-fp16")
    assert result.manifest["violations"] == []
    assert result.manifest["inputs"][0]["dtype"] == "float"
    assert run_script(tmp_path / "out").returncode == 0
    with pytest.raises(TargetError):
        graphopt.export(source, "nnapi", tmp_path / "other", passes="O2,convert-fp16")


def test_a_newer_file_format_is_written_as_an_older_one(tmp_path: Path, plain: ir.Model) -> None:
    result = graphopt.export(plain, toy("Relu", ir_version=7), tmp_path / "out")
    assert result.manifest["ir_version"] == 7
    assert ir.load(tmp_path / "out" / "model.onnx").ir_version == 7


def test_models_that_cannot_be_compared(tmp_path: Path) -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17, "mine": 1]>
        g (float[1,2] x) => (float[1,2] y) { t = Identity(x) y = mine.Op(t) }
    """)
    arguments = {"allow_violations": True}
    with pytest.raises(VerificationError, match="outputs were not compared"):
        graphopt.export(model, "portable", tmp_path / "out", require_verified=True, **arguments)
    assert list(tmp_path.iterdir()) == []
    result = graphopt.export(model, "portable", tmp_path / "out", **arguments)
    assert result.manifest["runs"][0]["oracle"]["verdict"] == "unavailable"


def test_bad_input(tmp_path: Path, plain: ir.Model) -> None:
    with pytest.raises(graphopt.ConfigError, match="no target 'nnapy'"):
        graphopt.export(plain, "nnapy", tmp_path / "out")
    with pytest.raises(CalibrationError):
        graphopt.export(plain, "nnapi", tmp_path / "out", data=tmp_path / "no.npz")
    proto = ir.to_proto(plain)
    proto.training_info.add()
    with pytest.raises(UnsupportedFeature, match="cannot be brought into another form"):
        graphopt.export(ir.load(proto), "nnapi", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ExportError):
        graphopt.export(plain, "nnapi", tmp_path / "file")


def test_strings_and_integers_can_be_made_up(tmp_path: Path) -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (string[N] s, int64[2] i, float16[2] h) => (string[N] a, int64[2] b, float16[2] c)
        { a = Identity(s) b = Add(i, i) c = Identity(h) }
    """)
    graphopt.export(model, "cpu", tmp_path / "out", allow_violations=True)
    done = run_script(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "a: tensor(string) (1,)" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_vgg", "digits_resnet", "digits_mobilenet"])
def test_int8_for_nnapi_is_one_partition(tmp_path: Path, models_dir: Path, name: str) -> None:
    from onnxruntime.tools.mobile_helpers.usability_checker import check_nnapi_partitions

    source = models_dir / f"{name}.onnx"
    result = graphopt.export(
        source, "nnapi", tmp_path / "out",
        passes="O2,quantize-int8{choose=all rounding=nearest}",
        data=models_dir / "digits_calib.npz",
    )  # fmt: skip
    assert result.manifest["quantization"] == "u8s8"
    assert result.manifest["violations"] == []
    exported = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "out" / "model.onnx"))
    found = check_nnapi_partitions(exported, True)
    assert (found.num_partitions, found.unsupported_ops) == (1, set())
    assert found.num_supported_nodes == len(exported.graph.node)
    with np.load(models_dir / "digits_test.npz") as test:
        images = [{"image": image[None]} for image in test["image"][:100]]
    oracle = Oracle(ir.load(source), data=images, samples=100, accepts=result.model)
    compared = oracle.check(result.model, "lossy")
    assert compared.ok, compared.reason
    assert compared.sqnr_db is not None
    assert compared.sqnr_db > 20
    assert run_script(tmp_path / "out").returncode == 0
