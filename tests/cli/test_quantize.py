"""``graphopt quantize`` and ``graphopt.quantize``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import graphopt
from graphopt import ir
from graphopt.cli import main
from graphopt.cli.quantize_view import show_debug, show_result
from graphopt.errors import CalibrationError, ConfigError, GoalNotMet, VerificationError
from graphopt.manager.report import PassRecord, Report
from graphopt.quant import quantizer

if TYPE_CHECKING:
    from .conftest import Run

# Quick, and the same on every machine.
STATIC = ("--choose", "all", "--calibrate", "minmax")
DYNAMIC = ("--choose", "all", "--form", "dynamic")


@pytest.fixture
def transformer(models_dir: Path) -> Path:
    return models_dir / "digits_transformer.onnx"


@pytest.fixture(scope="module")
def folder(models_dir: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet in int8, all nodes but one, with its reports."""
    folder = tmp_path_factory.mktemp("quantized")
    arguments = [
        "quantize", models_dir / "digits_resnet.onnx", "-o", folder / "int8.onnx", "--data", few,
        *STATIC, "--skip", "Slice", "--json", folder / "report.json",
        "--debug", folder / "debug.txt", "-q",
    ]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0
    return folder


def details_of(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["passes"][-1]["details"]
    return found


# --- ResNet, static -------------------------------------------------------------------------------


def test_the_model_computes_on_integers(folder: Path) -> None:
    operators = {n.op_type for n in graphopt.load(folder / "int8.onnx").graph}
    assert "QLinearConv" in operators or "DequantizeLinear" in operators
    report = json.loads((folder / "report.json").read_text())
    assert report["schema"] == "graphopt.report/1"
    (file,) = report["files"]
    assert file["bytes"] == (folder / "int8.onnx").stat().st_size < 130_000
    assert report["oracle"]["promise"] == "lossy"
    assert report["oracle"]["error"]["sqnr_db"] > 25


def test_the_report_tells_of_every_node(folder: Path) -> None:
    details = details_of(json.loads((folder / "report.json").read_text()))
    rows = details["nodes"]
    assert len(rows) == 22
    (left,) = (r for r in rows if r["form"] == "float")
    assert (left["op"], left["reason"]) == ("Slice", "it is among those to skip")
    assert {r["form"] for r in rows} == {"static", "float"}
    first = rows[0]
    assert first["op"] == "Conv"
    assert first["noise_db"] > 30
    assert first["weight_noise_db"] > 30
    (candidate,) = details["candidates"]
    assert candidate["name"] == details["chosen"] == "static, 21 of 21 nodes"
    assert candidate["sqnr_db"] > 25
    assert candidate["cosine"] > 0.999
    assert candidate["agreement"] == 1
    assert candidate["samples"] == 24
    assert candidate["speedup"] is None
    assert details["unmeasured"] == "every node with an integer kernel counts"


def test_the_debug_report(folder: Path) -> None:
    found = details_of(json.loads((folder / "report.json").read_text()))["debug"]
    assert found["form"] == "static, 21 of 21 nodes"
    tensors = {t["name"]: t for t in found["tensors"]}
    assert tensors["image"]["range"] == [0.0, pytest.approx(1.0)]
    assert tensors["logits"]["sqnr_db"] > 25
    assert all(t["saturated"] < 0.01 for t in tensors.values())  # minmax cuts nothing off
    text = (folder / "debug.txt").read_text()
    (line,) = (x for x in text.splitlines() if x.startswith("logits"))
    assert f" {tensors['logits']['sqnr_db']:.1f} " in line
    assert " int8 " in line
    assert "it is among those to skip" in text
    assert all(x == x.rstrip() for x in text.splitlines())


# --- what is printed ------------------------------------------------------------------------------


def test_output(run: Run, transformer: Path, few: Path, tmp_path: Path) -> None:
    done = run("quantize", transformer, "-o", tmp_path / "q.onnx", "--data", few, *DYNAMIC)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert "nodes      14 of 96: 14 dynamic (activations quantized at each run)" in lines
    assert any(x.startswith("quality    SQNR ") and x.endswith(" on 24 samples") for x in lines)
    assert "speed      not measured: every node with an integer kernel counts" in lines
    assert any(x.startswith("size       460 kB -> ") for x in lines)
    assert any("the dynamic form needs a constant weight" in x for x in lines)
    assert "(--verbose lists them)" in lines
    assert lines[-1].startswith(f"wrote {tmp_path / 'q.onnx'}: ")
    assert "LayerNormalization_output_0" not in done.out


def test_verbose_and_debug(run: Run, transformer: Path, few: Path, tmp_path: Path) -> None:
    done = run(
        "quantize", transformer, "-o", tmp_path / "q.onnx", "--data", few, *DYNAMIC, "-v",
        "--debug", "-",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "dynamic, 14 of 14 nodes" in done.out
    assert "/norm/LayerNormalization_output_0" in done.out
    assert "--verbose" not in done.out
    assert "No static form of the model was tried" in done.out


def test_without_samples(run: Run, transformer: Path, tmp_path: Path) -> None:
    done = run("quantize", transformer, "-o", tmp_path / "q.onnx", "--form", "dynamic")
    assert (done.code, done.err) == (0, "")
    assert "quality    not measured, for want of samples (--data)" in done.out
    assert "speed      not measured: there are no samples to run" in done.out
    assert ir.load(tmp_path / "q.onnx").graph.name


def test_json_on_stdout(run: Run, transformer: Path, tmp_path: Path) -> None:
    done = run(
        "quantize", transformer, "-o", tmp_path / "q.onnx", *DYNAMIC, "--json", "-",
        "--no-optimize",
    )  # fmt: skip
    report = json.loads(done.out)
    assert [p["name"] for p in report["passes"]] == ["quantize-int8"]
    assert details_of(report)["chosen"] == "dynamic"
    assert "debug" not in details_of(report)


# --- goals ----------------------------------------------------------------------------------------


def test_a_goal_that_is_not_met(run: Run, transformer: Path, few: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "q.onnx", tmp_path / "r.json"
    done = run(
        "quantize", transformer, "-o", out, "--data", few, *DYNAMIC, "--min-sqnr", "95",
        "--json", report,
    )  # fmt: skip
    assert done.code == 6
    assert "is below 95 dB" in done.err
    assert done.err.startswith("error: no int8 form keeps within the budget: SQNR ")
    assert done.err.count("\n") == 1
    assert done.out.startswith("Not quantized: no int8 form keeps within the budget")
    assert "wrote" not in done.out
    assert not out.exists()
    assert json.loads(report.read_text())["files"] == []
    assert details_of(json.loads(report.read_text()))["chosen"] is None


def test_a_goal_that_is_met(run: Run, transformer: Path, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    goal = ("--min-sqnr", "20", "--max-drop", "50")
    done = run("quantize", transformer, "-o", out, "--data", few, *DYNAMIC, *goal, "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert out.exists()


def test_where_nothing_is_faster(
    run: Run, transformer: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "its int8 form would not be faster than the original: 0.90x"
    monkeypatch.setattr(quantizer, "best", lambda candidates, budget: (None, reason))
    out = tmp_path / "q.onnx"
    done = run("quantize", transformer, "-o", out, "--data", few, *DYNAMIC)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Not quantized: {reason}.")
    assert "MatMulInteger" not in {n.op_type for n in graphopt.load(out).graph}
    out.unlink()
    done = run("quantize", transformer, "-o", out, "--data", few, *DYNAMIC, "--max-drop", "1")
    assert (done.code, done.err) == (6, f"error: {reason}\n")
    assert not out.exists()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--form", "static"), "needs calibration data (--data)"),
        (("--form", "dynamic", "--min-sqnr", "20"), "needs calibration data (--data)"),
        (("--skip", "*"), "computes none of the nodes on integers; these are to be skipped: *"),
        (("--target", "cpux64"), "there is no target 'cpux64'"),
        (("--calibrate", "minmx"), "did you mean 'minmax'?"),
        (("--max-drop", "101"), "max-drop is a share in percent, in [0, 100], not 101"),
        (("--form", "both"), "'both' is not one of"),
        (("--nothing-like-it",), "no such option '--nothing-like-it'"),
        (("--data", "missing.npz"), "missing.npz"),
        (("--debug", "-", "-q"), "--debug - cannot be had"),
        (("--debug", "-", "--json", "-"), "--debug - cannot be had"),
    ],
)
def test_errors(
    run: Run, transformer: Path, tmp_path: Path, options: Sequence[str], why: str
) -> None:
    done = run("quantize", transformer, "-o", tmp_path / "q.onnx", *options)
    assert done.code == 2
    assert done.out == ""
    assert why in done.err
    assert done.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_missing_data(run: Run, resnet: Path, tmp_path: Path) -> None:
    done = run("quantize", resnet, "-o", tmp_path / "q.onnx", "--form", "static")
    assert done.code == 2
    assert done.err == (
        "error: the model cannot be quantized: needs calibration data (--data), to see what the "
        "nodes compute; form=dynamic does without\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_model(run: Run, resnet: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", pixels=np.zeros((2, 3), np.float32))
    done = run("quantize", resnet, "-o", tmp_path / "q.onnx", "--data", tmp_path / "wrong.npz")
    assert done.code == 2
    assert "pixels" in done.err
    assert not (tmp_path / "q.onnx").exists()


def test_a_quantized_model(run: Run, folder: Path, few: Path, tmp_path: Path) -> None:
    done = run("quantize", folder / "int8.onnx", "-o", tmp_path / "q.onnx", "--data", few)
    assert done.code == 2
    assert "the model is quantized already; the pipeline repair" in done.err


def test_the_debug_report_overwrites_no_model(run: Run, transformer: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    done = run("quantize", transformer, "-o", out, "--debug", out)
    assert done.code == 2
    assert f"--debug would overwrite {out}" in done.err


@pytest.mark.parametrize("option", ["--output", "--json", "--debug"])
def test_samples_are_not_overwritten(
    option: str, run: Run, transformer: Path, few: Path, tmp_path: Path
) -> None:
    data = tmp_path / "few.npz"
    data.write_bytes(few.read_bytes())
    other = [] if option == "--output" else ["-o", tmp_path / "q.onnx"]
    done = run("quantize", transformer, *other, "--data", data, option, data)
    assert done.code == 2
    assert f"{option} would overwrite {data}" in done.err
    assert data.read_bytes() == few.read_bytes()


# --- Python ---------------------------------------------------------------------------------------


def test_python(transformer: Path, few: Path) -> None:
    result = graphopt.quantize(transformer, data=few, form="dynamic", choose="all", max_drop=50)
    assert result.report.pipeline.endswith("quantize-int8{form=dynamic choose=all max-drop=50.0}")
    assert result.report.passes[-1].status == "ok"
    with pytest.raises(GoalNotMet, match="is below 95 dB"):
        graphopt.quantize(transformer, data=few, form="dynamic", choose="all", min_sqnr=95)
    with pytest.raises(ConfigError, match="did you mean 'choose'"):
        graphopt.quantize(transformer, data=few, chose="all")
    with pytest.raises(ConfigError, match="needs calibration data"):
        graphopt.quantize(transformer, form="static")
    with pytest.raises(CalibrationError):
        graphopt.quantize(transformer, data={"pixels": np.zeros((1, 3), np.float32)})


def test_a_pass_that_was_undone(transformer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(quantizer, "explain", fail)
    with pytest.raises(VerificationError, match=r"^quantize-int8\{form=dynamic\} was undone: it "):
        graphopt.quantize(transformer, form="dynamic")


def test_a_model_that_is_carried_through(tmp_path: Path) -> None:
    import onnx

    weight = onnx.SparseTensorProto(
        values=onnx.helper.make_tensor("w", 1, [1], [1.0]),
        indices=onnx.helper.make_tensor("i", 7, [1], [3]), dims=[2, 2],
    )  # fmt: skip
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [2, 2]) for n in "xy")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    graph.sparse_initializer.append(weight)
    path = tmp_path / "sparse.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8), path)
    with pytest.raises(ConfigError, match=r"cannot be quantized: .*sparse initializers"):
        graphopt.quantize(path, form="dynamic")


# --- the views, of what takes long to measure -----------------------------------------------------


def measured(**details: Any) -> Report:
    row = {"op": "Conv", "form": "static", "float_us": 20.0, "integer_us": 5.0}
    slow = {**row, "form": "float", "float_us": 4.0, "integer_us": 9.5, "reason": "it takes 9.5"}
    nodes: list[dict[str, Any]] = [
        {**row, "name": "a"},
        {**row, "name": "t", "op": "Gather", "form": "weights"},
        {**slow, "name": "b"},
        {**slow, "name": "c\x1b[1m", "op": "Add", "float_us": 0.0, "integer_us": 1.0},
        *(
            {"name": f"s{i}", "op": f"Op{i}", "form": "float", "reason": f"no kernel for Op{i}"}
            for i in range(6)
        ),
    ]
    quality = {"sqnr_db": 40.0, "cosine": 0.99991, "agreement": None, "samples": 64}
    candidates = [
        {"name": "fastest static", "speedup": 2.0, **dict.fromkeys(quality)},
        {"name": "static, 1 of 2", "speedup": 1.5, **quality},
        {"name": "static, 2 of 2", "speedup": 1.8, **quality, "sqnr_db": None},
    ]
    record = PassRecord(
        text="quantize-int8", name="quantize-int8", exactness="lossy", changed=True,
        details={
            "nodes": nodes, "candidates": candidates, "chosen": "static, 1 of 2",
            "unmeasured": None, **details,
        },
    )  # fmt: skip
    return Report(passes=[record])


def shown(report: Report, *, verbose: bool = False) -> list[str]:
    import io

    from graphopt.cli.common import console

    text = io.StringIO()
    model = ir.parse_text("<ir_version: 8, opset_import: [\"\": 17]>"
                          " g (float[1] x) => (float[1] y) { y = Relu(x) }")  # fmt: skip
    show_result(console(file=text), graphopt.Result(model, report), [], 1000, verbose)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def words(line: str) -> str:
    return " ".join(line.split())


def test_view_of_what_was_measured() -> None:
    lines = shown(measured())
    assert "nodes      2 of 10: 1 static, 1 weights only" in lines
    assert "quality    SQNR 40.0 dB, cosine 0.99991 on 64 samples" in lines
    assert "speed      1.50x as fast as in floating point" in lines
    start = lines.index("(--verbose lists them)") - 2
    assert words(lines[start]) == "2 on integers 10.5 us, in floating point 4.0 us 1 Conv, 1 Add"
    assert words(lines[start + 1]) == "6 no kernel 1 Op0, 1 Op1, 1 Op2, 1 Op3, 2 more"


def test_verbose_view_of_what_was_measured() -> None:
    lines = shown(measured(), verbose=True)
    assert "fastest static 2.00x" in map(words, lines)
    assert any("SQNR inf dB" in x for x in lines)
    assert any(x.startswith("c\\x1b[1m ") for x in lines), "names must not steer the terminal"
    assert sum("no kernel for" in x for x in lines) == 6


def test_many_reasons_are_cut() -> None:
    rows = [{"name": f"n{i}", "op": "Mul", "form": "float", "reason": str(i)} for i in range(8)]
    lines = shown(measured(nodes=rows))
    assert "3 for other reasons" in map(words, lines)


def test_debug_view() -> None:
    import io

    from graphopt.cli.common import console

    tensor = {
        "name": "t", "op": "Conv", "quantized": True, "sqnr_db": "inf", "range": [-1.0, 2.0],
        "seen": [-1.5, 2.0], "saturated": 0.125, "histogram": [1, 0, 1000],
    }  # fmt: skip
    floating = {
        **tensor, "name": "u", "op": "", "quantized": False, "sqnr_db": None, "range": None,
        "seen": None, "saturated": None, "histogram": [],
    }  # fmt: skip
    text = io.StringIO()
    debug = {"form": "static", "batches": 1, "tensors": [tensor, floating]}
    show_debug(console(file=text), measured(debug=debug))
    lines = text.getvalue().splitlines()
    assert "on 1 batch of data" in lines[0]
    assert "t Conv int8 inf -1 .. 2 -1.5 .. 2 12.500 % ▂ █" in map(words, lines)
    assert "u (input) float" in map(words, lines)
