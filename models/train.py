"""Train the reference models, export them and record what they are.

Run from the repository root; without names all five models are made anew::

    pip install -e ".[torch,cpu]" scikit-learn
    python -m models.train digits_vgg digits_lstm

Seeds are fixed and one thread is used, so the same versions on the same kind of processor give the
same weights. `--validate` trains on the first writers only and reports the accuracy on the last
writers of the train split; it is how recipes are chosen without looking at the test split.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import _data, nets

FOLDER = Path(__file__).parent
VALIDATION_COUNT = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained and exported.

    Attributes:
        summary: One phrase on the architecture, for the manifest.
        epochs: Passes over the train split.
        rate: Peak of the one-cycle schedule of the learning rate.
        opset: Version of the ONNX operator set exported to.
    """

    summary: str
    epochs: int
    rate: float
    opset: int


RECIPES = {
    "digits_vgg": Recipe(
        summary="plain 3x3 convolutions with BatchNorm and max pooling",
        epochs=16,
        rate=3e-3,
        opset=13,
    ),
    "digits_resnet": Recipe(
        summary="residual blocks, one option-A (Slice/Pad) and one projection shortcut",
        epochs=12,
        rate=5e-3,
        opset=13,
    ),
    "digits_mobilenet": Recipe(
        summary="depthwise convolutions, ReLU6, squeeze-excite, hard-swish",
        epochs=30,
        rate=5e-3,
        opset=14,
    ),
    "digits_transformer": Recipe(
        summary="encoder over image rows: LayerNorm, attention, GELU",
        epochs=100,
        rate=2e-3,
        opset=17,
    ),
    "digits_lstm": Recipe(
        summary="bidirectional LSTM over image rows, with an If and a Loop",
        epochs=80,
        rate=3e-3,
        opset=16,
    ),
}


def main() -> None:
    """Parse the command line and make the named models."""
    parser = argparse.ArgumentParser(description="Train and export the reference models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(RECIPES)}")
    parser.add_argument("--validate", action="store_true", help="train on less, write nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RECIPES)
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = _data.digits()
    if arguments.validate:
        data = _without_test(data)
    else:
        _update_samples()
    for name in arguments.names or RECIPES:
        start = time.perf_counter()
        net = train(name, data)
        seconds = time.perf_counter() - start
        if arguments.validate:
            correct = _correct_torch(net, data)
            print(f"{name}: {correct} of {len(data.test_labels)} right, {seconds:.0f} s")
            continue
        path = FOLDER / f"{name}.onnx"
        export(net, path, RECIPES[name].opset)
        entry = describe(name, path)
        _update_manifest("models", name, entry)
        print(f"{name}: accuracy {entry['test']['accuracy']:.4f}, trained in {seconds:.0f} s")


def train(name: str, data: _data.Digits) -> nn.Module:
    """Train one model on the train split.

    Args:
        name: A key of `RECIPES`.
        data: The images.

    Returns:
        The net, in evaluation mode.
    """
    recipe = RECIPES[name]
    torch.manual_seed(20240501)
    net = nets.BUILDERS[name]()
    images = torch.from_numpy(data.train_images)
    labels = torch.from_numpy(data.train_labels)
    batch = 64
    steps = -(-len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, epochs=recipe.epochs, steps_per_epoch=steps
    )
    net.train()
    for _ in range(recipe.epochs):
        for chosen in torch.split(torch.randperm(len(images)), batch):
            logits = net(_augment(images[chosen]))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: nn.Module, path: Path, opset: int) -> None:
    """Write the net as the exporter sees it: nothing folded, nothing fused, dynamic batch.

    Args:
        net: A net in evaluation mode.
        path: The file to write.
        opset: Version of the ONNX operator set.
    """
    example = torch.zeros(2, 1, _data.SIDE, _data.SIDE)
    with warnings.catch_warnings():
        # The TorchScript exporter is old on purpose: most models out there came from it.
        warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export")
        # The initial state is made from the batch size, so another batch size is no problem.
        warnings.filterwarnings("ignore", message="Exporting a model to ONNX with a batch_size")
        # Folding is off; its shape inference says so all the same.
        warnings.filterwarnings("ignore", message="Constant folding - Only steps=1")
        torch.onnx.export(
            net,
            (example,),
            str(path),
            dynamo=False,
            do_constant_folding=False,
            # In evaluation mode PRESERVE differs from EVAL in that BatchNorm stays in.
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=opset,
            input_names=[_data.INPUT],
            output_names=["logits"],
            dynamic_axes={_data.INPUT: {0: "batch"}, "logits": {0: "batch"}},
        )


def describe(name: str, path: Path) -> dict[str, Any]:
    """Measure an exported model with ONNX Runtime and make its manifest entry."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    correct, count = measure(path)
    operators = collections.Counter(node.op_type for node in _nodes(model.graph))
    return {
        "file": path.name,
        "summary": RECIPES[name].summary,
        **_fingerprint(path),
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}",
        "inputs": [_describe_value(value) for value in model.graph.input],
        "outputs": [_describe_value(value) for value in model.graph.output],
        "operators": dict(sorted(operators.items())),
        "task": "classify handwritten digits",
        "dataset": "scikit-learn load_digits, upsampled to 32x32",
        "test": {
            "split": f"the last {count} images of the dataset",
            "count": count,
            "correct": correct,
            "accuracy": round(correct / count, 6),
            "measured_with": f"onnxruntime {onnxruntime.__version__}",
        },
        "builder": f"models/nets.py:{nets.BUILDERS[name].__name__}",
        "source": "models/train.py",
        "license": "Apache-2.0",
    }


def measure(path: Path) -> tuple[int, int]:
    """Right answers and number of images of the test samples, by ONNX Runtime's defaults."""
    with np.load(FOLDER / "digits_test.npz") as samples:
        images = samples[_data.INPUT]
    labels = np.load(FOLDER / "digits_test_labels.npy")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {_data.INPUT: images})
    return int((np.asarray(logits).argmax(axis=1) == labels).sum()), len(labels)


def _augment(images: Tensor) -> Tensor:
    """Rotate by up to 10 degrees, scale by up to 10 % and shift by up to 2 pixels, at random."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * (torch.pi / 18)
    scale = 1 + (torch.rand(count, 1, 1) * 2 - 1) * 0.1
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1)
    shift = (torch.rand(count, 2, 1) * 2 - 1) * (2 * 2 / _data.SIDE)
    theta = torch.cat((rotation.view(count, 2, 2) * scale, shift), dim=2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _without_test(data: _data.Digits) -> _data.Digits:
    """The train split alone, its last images in the place of the test split."""
    cut = len(data.train_images) - VALIDATION_COUNT
    return dataclasses.replace(
        data,
        train_images=data.train_images[:cut],
        train_labels=data.train_labels[:cut],
        test_images=data.train_images[cut:],
        test_labels=data.train_labels[cut:],
    )


def _correct_torch(net: nn.Module, data: _data.Digits) -> int:
    with torch.no_grad():
        logits = net(torch.from_numpy(data.test_images)).numpy()
    return int((logits.argmax(axis=1) == data.test_labels).sum())


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _describe_value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        "shape": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    }


def _fingerprint(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _update_samples() -> None:
    """Write the sample files and their manifest entries."""
    origin = {
        "digits_calib.npz": f"{_data.CALIBRATION_COUNT} images evenly spaced over the train split",
        "digits_test.npz": f"the test split: the last {_data.TEST_COUNT} images of the dataset",
        "digits_test_labels.npy": "the labels of digits_test.npz",
    }
    for path in _data.write_samples(FOLDER):
        entry = {"file": path.name, "content": origin[path.name], **_fingerprint(path)}
        _update_manifest("samples", path.stem, {**entry, "license": "CC-BY-4.0"})


def _update_manifest(section: str, name: str, entry: dict[str, Any]) -> None:
    """Replace one entry of the manifest, which is made where it is missing."""
    path = FOLDER / "manifest.json"
    manifest = json.loads(path.read_text("utf-8")) if path.exists() else {}
    manifest.setdefault(section, {})[name] = entry
    path.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
