"""The reference models through the default pipeline: equal, smaller, as accurate as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt import ir
from graphopt.runtime import open_session

MODELS = Path(__file__).parents[2] / "models"
MANIFEST = json.loads((MODELS / "manifest.json").read_text(encoding="utf-8"))["models"]
IMAGES = np.load(MODELS / "digits_test.npz")["image"]
LABELS = np.load(MODELS / "digits_test_labels.npy")

# What the best of the peers leave of each model; more would be a step back.
MOST_NODES = {
    "digits_lstm": 40,
    "digits_mobilenet": 47,
    "digits_resnet": 33,
    "digits_transformer": 102,
    "digits_vgg": 19,
}


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_smaller_equal_and_as_accurate(name: str, tmp_path: Path) -> None:
    source, target = MODELS / MANIFEST[name]["file"], tmp_path / "out.onnx"
    result = graphopt.optimize(source, data=MODELS / "digits_calib.npz")
    graphopt.save(result.model, target)
    report = result.report
    assert report.oracle["verdict"] == "equal"
    assert report.oracle["feeds"]["samples"] > 0
    assert not report.reverted
    assert report.after.nodes <= MOST_NODES[name]
    assert target.stat().st_size < source.stat().st_size
    assert ir.interface_difference(ir.load(source), ir.load(target)) is None
    with open_session(target, optimize=True) as session:
        logits = session.run({"image": IMAGES})["logits"]
    correct = int((logits.argmax(1) == LABELS).sum())
    assert correct == MANIFEST[name]["test"]["correct"]


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_bitwise_pipelines_change_no_bit(name: str) -> None:
    source = MODELS / MANIFEST[name]["file"]
    result = graphopt.optimize(source, "O1", oracle="each", data=MODELS / "digits_calib.npz")
    assert not result.report.reverted
    found = graphopt.verify(source, result.model, exactness="bitwise", seeds=(3, 4))
    assert found.ok, found.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["minilm_l6", "mnist", "mobilenetv2_cifar", "resnet20", "resnet56", "silero_vad",
     "ultraface_rfb_320"],
)  # fmt: skip
def test_real_models(name: str, shared_data: Path, tmp_path: Path) -> None:
    source, target = shared_data / "models" / f"{name}.onnx", tmp_path / "out.onnx"
    result = graphopt.optimize(source, "O3", oracle="each")
    graphopt.save(result.model, target)
    assert result.report.oracle["verdict"] == "equal"
    # The other program's work is kept only where it improves on ours.
    assert {r.name for r in result.report.reverted} <= {"onnxsim"}
    assert target.stat().st_size <= source.stat().st_size
    found = graphopt.verify(source, target, seeds=(5, 6))
    assert found.ok, found.reason


def test_a_torch_module(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch", reason="needs the extra graphopt[torch]")
    pytest.importorskip("onnxscript", reason="needs the extra graphopt[torch]")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    result = graphopt.optimize(net, inputs=(x,))
    assert result.report.oracle["verdict"] in ("equal", "unchanged")
    assert "BatchNormalization" not in {n.op_type for n in result.model.graph}
    name = result.model.graph.inputs[0].name or ""
    with open_session(result.model) as session:
        (found,) = session.run({name: x.numpy()}).values()
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
