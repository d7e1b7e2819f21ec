"""Every CNN exported to NNAPI, in 32-bit floats and in int8: partitions, violations, numbers.

ONNX Runtime's own usability checker judges how the execution provider would cut the model up; what
it computes is compared on the CPU, image by image, with the original in 32-bit floats.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _common import REPO, data_dir, environment, names, parser, scratch, table, write_json

Images = np.ndarray[Any, Any]
# All that has integer kernels: what is worth quantizing is measured on the CPU, not on a phone.
PASSES = {"fp32": "O2", "int8": "O2,quantize-int8{choose=all}"}


@dataclass(frozen=True)
class Subject:
    """A model and images for it.

    Attributes:
        name: Stem of its file.
        file: The model.
        input: Name of its input.
        images: Loads images to calibrate with and images to judge by, each with samples along axis
            0, and the labels of the latter, if these are classes.
    """

    name: str
    file: Path
    input: str
    images: Callable[[], tuple[Images, Images, Images | None]]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a model is not one partition of supported operators."""
    args = parser(__doc__, "nnapi_export")
    args.add_argument("--models", default="", help="comma-separated model names (default: all)")
    args.add_argument("--modes", default="fp32,int8", help="comma-separated: fp32, int8")
    args.add_argument("--passes", default="", help="pipeline for int8 instead of the default")
    args.add_argument(
        "--samples", type=int, default=1000, help="at most so many images to judge by"
    )
    args.add_argument("--calibrate", type=int, default=256, help="images to calibrate with")
    options = args.parse_args(argv)
    wanted = names(options.models)
    rows = []
    with scratch(options.cache, "nnapi-") as folder:
        for subject in subjects():
            if wanted and subject.name not in wanted:
                continue
            if not subject.file.exists():
                print(f"  {subject.name}: skipped, {subject.file.name} is not there", flush=True)
                continue
            for mode in names(options.modes):
                rows.append(_one(subject, mode, options, folder))
                print(f"  {subject.name} {mode}: {_brief(rows[-1])}", flush=True)
    print(report(rows))
    write_json(
        options.json,
        {"environment": environment(["Pillow"]), "samples": options.samples, "rows": rows},
    )
    return int(any(not row.get("whole") for row in rows))


# --- models and images ---------------------------------------------------------------------------


def subjects() -> list[Subject]:
    """The CNNs of the repository and of the shared data."""
    shared = data_dir() / "models"
    own = [
        Subject(n, REPO / "models" / f"{n}.onnx", "image", _digits)
        for n in ("digits_vgg", "digits_resnet", "digits_mobilenet")
    ]
    cifar = [
        Subject(n, shared / f"{n}.onnx", "input", _cifar)
        for n in ("resnet20", "resnet56", "mobilenetv2_cifar")
    ]
    mnist = Subject("mnist", shared / "mnist.onnx", "Input3", _mnist)
    faces = Subject("ultraface_rfb_320", shared / "ultraface_rfb_320.onnx", "input", _face_images)
    return [*own, mnist, *cifar, faces]


def _digits() -> tuple[Images, Images, Images | None]:
    folder = REPO / "models"
    with np.load(folder / "digits_calib.npz") as seen, np.load(folder / "digits_test.npz") as new:
        return seen["image"], new["image"], np.load(folder / "digits_test_labels.npy")


def _mnist() -> tuple[Images, Images, Images | None]:
    from _tasks import _mnist_images

    images, labels = _mnist_images(data_dir())
    images = images.reshape(-1, 1, 28, 28)
    return images[:500], images[500:], labels[500:]


def _cifar() -> tuple[Images, Images, Images | None]:
    from _tasks import _cifar_images

    images, labels = _cifar_images(data_dir())
    return _cifar_train(500), images, labels


def _cifar_train(count: int) -> Images:
    from PIL import Image

    with np.load(data_dir() / "cifar10_train.npz") as archive:
        jpeg, offsets = archive["jpeg"], archive["offsets"][: count + 1]
    files = (jpeg[a:b].tobytes() for a, b in pairwise(offsets))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _face_images() -> tuple[Images, Images, Images | None]:
    from _tasks import _faces

    images = np.concatenate(_faces(data_dir()))
    return images[::2], images[1::2], None


# --- one export ----------------------------------------------------------------------------------


def _one(subject: Subject, mode: str, options: Any, folder: Path) -> dict[str, Any]:
    import graphopt

    row: dict[str, Any] = {"model": subject.name, "mode": mode}
    passes = options.passes if mode == "int8" and options.passes else PASSES[mode]
    seen, images, labels = subject.images()
    images = images[: options.samples]
    data = [{subject.input: image[None]} for image in seen[: options.calibrate]]
    try:
        result = graphopt.export(
            subject.file, "nnapi", folder / f"{subject.name}-{mode}", passes=passes, data=data,
            allow_violations=True,
        )  # fmt: skip
    except graphopt.GraphOptError as error:
        return row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    violations = result.manifest["violations"]
    row |= {
        "nodes": sum(result.manifest["operators"].values()),
        "bytes": result.files[0].stat().st_size,
        "bytes_before": subject.file.stat().st_size,
        "violations": sorted({f"{v['operator']}: {v['reason']}" for v in violations}),
        "scheme": result.manifest["quantization"],
    }
    row |= _partitions(result.files[0])
    row["whole"] = (
        row["partitions"] == 1 and row["supported"] == row["nodes"] and not row["unsupported_ops"]
    )
    row |= _numbers(subject, result.files[0], images, labels)
    return row


def _partitions(path: Path) -> dict[str, Any]:
    """What ONNX Runtime's checker says, for inputs of fixed size."""
    import onnx
    from onnxruntime.tools.mobile_helpers.usability_checker import check_nnapi_partitions

    found = check_nnapi_partitions(onnx.shape_inference.infer_shapes(onnx.load(path)), True)
    return {
        "partitions": found.num_partitions,
        "supported": found.num_supported_nodes,
        "unsupported_ops": sorted(found.unsupported_ops),
    }


def _numbers(subject: Subject, path: Path, images: Images, labels: Images | None) -> dict[str, Any]:
    """Compare the exported model, as users run it, with the original, as it stands."""
    from _equality import session, sqnr_db

    outputs = []
    for file, optimize in ((subject.file, False), (path, True)):
        opened = session(file, optimize=optimize)
        runs = [opened.run(None, {subject.input: image[None]}) for image in images]
        outputs.append([np.concatenate([r[i] for r in runs]) for i in range(len(runs[0]))])
    before, after = outputs
    found: dict[str, Any] = {"images": len(images), "sqnr_db": sqnr_db(before, after)}
    if labels is not None:
        old, new = before[0].argmax(-1), after[0].argmax(-1)
        known = labels[: len(images)]
        found["agreement_percent"] = 100.0 * float((old == new).mean())
        found["top1_before_percent"] = 100.0 * float((old == known).mean())
        found["top1_percent"] = 100.0 * float((new == known).mean())
    return found


# --- report --------------------------------------------------------------------------------------


def _brief(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    return f"{row['partitions']} partitions, {row['supported']} of {row['nodes']} nodes"


def report(rows: list[dict[str, Any]]) -> str:
    """One line per model and mode."""
    headers = ["model", "mode", "nodes", "supported", "partitions", "violations", "KB before", "KB",
               "SQNR dB", "agreement %", "top-1 before %", "top-1 %", "remark"]  # fmt: skip
    body = []
    for row in rows:
        if "error" in row:
            body.append([row["model"], row["mode"], *[None] * 10, row["error"]])
            continue
        remark = "; ".join([*row["unsupported_ops"], *row["violations"]])
        body.append([
            row["model"], row["mode"], row["nodes"], row["supported"], row["partitions"],
            len(row["violations"]), row["bytes_before"] / 1024, row["bytes"] / 1024,
            row["sqnr_db"], row.get("agreement_percent"), row.get("top1_before_percent"),
            row.get("top1_percent"), remark,
        ])  # fmt: skip
    return table(headers, body, "CNNs exported to NNAPI")


if __name__ == "__main__":
    sys.exit(main())
