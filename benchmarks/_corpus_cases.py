"""The corpus: ONNX's backend node tests and the models shipped inside the onnx wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from _equality import Feeds
from _models import fed_inputs
from onnx import numpy_helper

if TYPE_CHECKING:
    from onnx.backend.test.case.test_case import TestCase

GROUPS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
SHIPPED = Path(onnx.__file__).parent / "backend" / "test" / "data"


@dataclass(frozen=True)
class Case:
    """One model with its test data.

    Attributes:
        name: Name of the test.
        group: Where it comes from, one of ``GROUPS``.
        model: The model file.
        data: Folders with ``input_*.pb`` and ``output_*.pb``; a single ``.pb`` file is an expected
            output whose input is the backend test runner's dummy ramp.
        rtol: Relative tolerance of the test.
        atol: Absolute tolerance of the test.
    """

    name: str
    group: str
    model: str
    data: tuple[str, ...]
    rtol: float
    atol: float

    def to_json(self) -> dict[str, Any]:
        """The case as plain data, to hand to a worker."""
        return asdict(self)


def generate(cache: Path) -> Path:
    """Write every backend node test into a folder, once per onnx version; returns that folder."""
    from onnx.backend.test.case.model import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    root = cache / f"onnx-{onnx.__version__}-backend-tests"
    done = root / "tolerances.json"
    if done.exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    print("generating the backend node tests ...", flush=True)
    with warnings.catch_warnings():  # onnx's test cases overflow and divide by zero on purpose
        warnings.simplefilter("ignore", RuntimeWarning)
        tests = load_model_tests(kind="node")
    for test in tests:
        _write_test(root / "node" / test.name, test)
    tolerances = {test.name: [test.rtol, test.atol] for test in (*collect_testcases(), *tests)}
    done.write_text(json.dumps(tolerances), encoding="utf-8")
    return root


def _write_test(folder: Path, test: TestCase) -> None:
    """Write model.onnx and test_data_set_N/{input,output}_I.pb, as backend tests are laid out."""
    assert test.model is not None, "node tests carry their model"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(test.model.SerializeToString())
    for i, (inputs, outputs) in enumerate(test.data_sets or ()):
        data = folder / f"test_data_set_{i}"
        data.mkdir()
        for side, values, declared in (
            ("input", inputs, test.model.graph.input),
            ("output", outputs, test.model.graph.output),
        ):
            for j, (value, info) in enumerate(zip(values, declared, strict=False)):
                (data / f"{side}_{j}.pb").write_bytes(_value_proto(value, info).SerializeToString())


def _value_proto(value: Any, info: onnx.ValueInfoProto) -> Any:
    if info.type.HasField("map_type"):
        return numpy_helper.from_dict(value, info.name)
    if info.type.HasField("sequence_type"):
        return numpy_helper.from_list(value, info.name)
    if info.type.HasField("optional_type"):
        return numpy_helper.from_optional(value, info.name)
    return (
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, info.name)
    )


def collect(cache: Path, groups: list[str], only: str, limit: int) -> list[Case]:
    """List the cases.

    Args:
        cache: Folder for the generated node tests.
        groups: Which of ``GROUPS``.
        only: Regular expression the name has to contain.
        limit: Keep this many, spread evenly over the list; 0 keeps all.
    """
    generated = generate(cache)
    tolerances = json.loads((generated / "tolerances.json").read_text(encoding="utf-8"))
    cases: list[Case] = []
    for group in groups:
        root = generated / "node" if group == "node" else SHIPPED / group
        cases += _light(root, tolerances) if group == "light" else _folders(group, root, tolerances)
    cases = [case for case in cases if re.search(only, case.name)]
    if limit and len(cases) > limit:
        cases = [cases[i * len(cases) // limit] for i in range(limit)]
    return cases


def _folders(group: str, root: Path, tolerances: dict[str, list[float]]) -> list[Case]:
    cases = []
    for folder in sorted(root.iterdir()):
        model = folder / "model.onnx"
        if not model.exists():
            continue
        rtol, atol = tolerances.get(folder.name, [1e-3, 1e-7])
        own = folder / "data.json"
        if own.exists():
            stated = json.loads(own.read_text(encoding="utf-8"))
            rtol, atol = stated.get("rtol", rtol), stated.get("atol", atol)
        data = tuple(str(d) for d in sorted(folder.glob("test_data_set_*")))
        cases.append(Case(folder.name, group, str(model), data, rtol, atol))
    return cases


def _light(root: Path, tolerances: dict[str, list[float]]) -> list[Case]:
    cases = []
    for model in sorted(root.glob("*.onnx")):
        rtol, atol = tolerances.get(model.stem.replace("light_", "test_"), [1e-3, 1e-7])
        expected = f"{os.fspath(model.with_suffix(''))}_output_0.pb"
        cases.append(Case(model.stem, "light", str(model), (expected,), rtol, atol))
    return cases


# --- test data -----------------------------------------------------------------------------------


def read_data(model: onnx.ModelProto, source: Path) -> tuple[Feeds, list[Any]]:
    """Read one data set: what to feed and what the test expects."""
    inputs = fed_inputs(model)
    if source.is_file():
        feeds = {value.name: _ramp(value) for value in inputs}
        return feeds, [_value(source, model.graph.output[0].type)]
    feeds = {}
    for i, value in enumerate(inputs):
        path = source / f"input_{i}.pb"
        if path.exists():
            feeds[value.name] = _value(path, value.type)
    expected = [
        _value(path, value.type)
        for i, value in enumerate(model.graph.output)
        if (path := source / f"output_{i}.pb").exists()
    ]
    return feeds, expected


def _ramp(value: onnx.ValueInfoProto) -> np.ndarray:
    """The dummy input of the backend test runner: 0 to 1 in even steps."""
    dims = value.type.tensor_type.shape.dim
    shape = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in dims)
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def _value(path: Path, kind: onnx.TypeProto) -> Any:
    raw = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
    if kind.HasField("map_type"):
        return numpy_helper.to_dict(onnx.MapProto.FromString(raw))
    return numpy_helper.to_array(onnx.TensorProto.FromString(raw))
