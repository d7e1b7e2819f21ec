"""The verbs that look at models, passes and the installation."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import ir
from graphopt.manager.registry import default_registry

if TYPE_CHECKING:
    from .conftest import Run

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def write(path: Path, text: str) -> Path:
    graphopt.save(ir.parse_text(HEAD + text), path)
    return path


@pytest.fixture
def optimized(resnet: Path, tmp_path: Path) -> Path:
    path = tmp_path / "optimized.onnx"
    graphopt.save(graphopt.optimize(resnet, "O2").model, path)
    return path


# --- inspect --------------------------------------------------------------------------------------


def test_inspect(run: Run, resnet: Path) -> None:
    done = run("inspect", resnet)
    assert (done.code, done.err) == (0, "")
    facts, table = done.out.split("\n\n")
    assert [line.split()[0] for line in facts.splitlines()] == [
        "format", "input", "output", "size", "parameters", "MACs", "time", "nodes",
    ]  # fmt: skip
    assert "input       image: float batchx1x32x32" in facts
    assert "12 Conv, 12 BatchNormalization, " in facts
    lines = table.splitlines()
    assert lines[0].split() == ["operator", "output", "shape", "MACs", "bytes", "time", "share"]
    assert len(lines) == 2 + 10
    assert (
        len(run("inspect", resnet, "--top", "3").out.splitlines()) == len(done.out.splitlines()) - 7
    )
    assert "\n\n" not in run("inspect", resnet, "--top", "0").out


def test_inspect_json(run: Run, resnet: Path) -> None:
    data = json.loads(run("inspect", resnet, "--json", "-").out)
    assert set(data) == {
        "schema", "model", "ir_version", "opsets", "producer", "inputs", "outputs", "bytes",
        "remarks", "operators", "node_count", "parameters", "macs", "seconds", "nodes",
    }  # fmt: skip
    assert data["schema"] == "graphopt.inspect/1"
    assert data["bytes"] == resnet.stat().st_size
    assert data["inputs"] == [{"name": "image", "type": "float", "shape": ["batch", 1, 32, 32]}]
    assert data["operators"]["Conv"] == 12
    assert data["node_count"] == len(data["nodes"]) == sum(data["operators"].values())
    assert data["macs"] == sum(n["macs"] for n in data["nodes"])
    first = next(n for n in data["nodes"] if n["op"] == "Conv")
    assert set(first) == {
        "op", "name", "depth", "inputs", "outputs", "shapes", "macs", "bytes", "seconds",
        "subgraphs",
    }  # fmt: skip
    assert first["shapes"] == [["batch", 16, 32, 32]]
    assert first["macs"] == 16 * 32 * 32 * 9


def test_inspect_lists_nodes_of_subgraphs_below_their_owner(run: Run, tmp_path: Path) -> None:
    model = write(
        tmp_path / "model.onnx",
        """g (bool c, float[4] a) => (float[4] y) {
          y = If (c) <
            then_branch = t () => (float[4] p) { p = Exp(a) },
            else_branch = e () => (float[4] q) { n = Neg(a) q = Abs(n) }
          >
        }""",
    )
    every = run("inspect", model, "--all").out.split("\n\n")[1].splitlines()[2:]
    assert [line.split()[0] for line in every] == ["If", "Exp", "Neg", "Abs"]
    assert [len(line) - len(line.lstrip()) for line in every] == [0, 2, 2, 2]
    top = run("inspect", model).out.split("\n\n")[1].splitlines()[2:]
    assert {line.split()[0] for line in top} == {"Exp", "Neg", "Abs"}


def test_inspect_does_not_make_up_what_it_did_not_look_into(run: Run, tmp_path: Path) -> None:
    weight = onnx.helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "w"),
        onnx.numpy_helper.from_array(np.array([0, 3]), "i"),
        [2, 2],
    )
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [2, 2]) for n in "xy")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y]
    )
    graph.sparse_initializer.append(weight)
    path = tmp_path / "sparse.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8), path)
    done = run("inspect", path)
    assert "remark  the model is carried through unchanged: sparse initializers" in done.out
    assert "nodes" not in done.out
    data = json.loads(run("inspect", path, "--json", "-").out)
    assert data["nodes"] is data["node_count"] is data["macs"] is None
    out = tmp_path / "out.onnx"
    said = run("optimize", path, "-o", out).out
    assert out.read_bytes() == path.read_bytes()
    assert "The model is as it was." in said
    assert "nodes" not in said


# --- verify ---------------------------------------------------------------------------------------


def test_verify(run: Run, resnet: Path, optimized: Path, samples: Path) -> None:
    done = run("verify", resnet, optimized)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(
        "equal up to rounding on 4 made-up inputs (batch=1; batch=3); they differ by at most "
    )
    assert "equal up to rounding on 16 batches of data and 4 made-up inputs" in (
        run("verify", resnet, optimized, "--data", samples).out
    )
    some = run("verify", resnet, optimized, "--data", samples, "--samples", "3", "--seed", "5")
    assert "on 3 of 16 batches of data and 2 made-up inputs" in some.out
    assert run("verify", resnet, resnet, "--exactness", "bitwise").out == (
        "equal bit by bit on 4 made-up inputs (batch=1; batch=3), without any difference\n"
    )
    lossy = run("verify", resnet, optimized, "--exactness", "lossy").out
    assert lossy.startswith("equal in names, types and shapes on 4 made-up inputs")
    assert "SQNR" in lossy
    lossy = run("verify", resnet, optimized, "--exactness", "lossy", "--data", samples).out
    assert lossy.startswith("equal in names, types and shapes on 16 batches of data; they differ ")
    assert lossy.endswith(" dB); on 4 made-up inputs (batch=1; batch=3) they are finite\n")


def test_verify_finds_differences(run: Run, resnet: Path, optimized: Path, tmp_path: Path) -> None:
    done = run("verify", resnet, optimized, "--exactness", "bitwise")
    assert done.code == 4
    assert done.out.startswith("different: logits[0, ")
    assert "the same bits were promised" in done.out
    one = write(tmp_path / "a.onnx", "g (float[2] a) => (float[2] y) { y = Exp(a) }")
    two = write(tmp_path / "b.onnx", "g (float[2] a, float[2] b) => (float[2] z) { z = Add(a, b) }")
    done = run("verify", one, two)
    assert (done.code, done.out) == (4, "")
    assert done.err == "error: the models have different inputs: only the second has 'b'\n"
    three = write(tmp_path / "c.onnx", "g (float[2] a) => (float[2] z) { z = Exp(a) }")
    assert run("verify", one, three).err == (
        "error: the models have different outputs: only the first has 'y' and only the second has "
        "'z'\n"
    )


def test_verify_compares_what_is_declared_differently(run: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "a.onnx", "g (float[N] a) => (float[N] y) { y = Exp(a) }")
    two = write(tmp_path / "b.onnx", "g (float[M] a) => (float[M] y) { y = Exp(a) }")
    done = run("verify", one, two)
    assert done.code == 0
    assert done.out.splitlines()[0].startswith("remark: declarations differ: input 'a'")


def test_verify_json(run: Run, resnet: Path, optimized: Path) -> None:
    done = run("verify", resnet, optimized, "--json", "-")
    data = json.loads(done.out)
    assert set(data) == {
        "schema", "a", "b", "exactness", "ok", "worst_output", "max_abs", "max_rel", "sqnr_db",
        "reason", "feeds", "remarks",
    }  # fmt: skip
    assert (data["schema"], data["ok"], data["reason"]) == ("graphopt.verify/1", True, None)
    assert data["feeds"]["made"] == 4
    assert 0 < data["max_abs"] < 1e-4
    failed = run("verify", resnet, optimized, "--json", "-", "--exactness", "bitwise")
    assert failed.code == 4
    assert json.loads(failed.out)["ok"] is False


# --- bench ----------------------------------------------------------------------------------------


def test_bench(run: Run, tmp_path: Path, resnet: Path) -> None:
    head = "g (float[400,400] a) => (float[400,400] y) "
    fast = write(tmp_path / "fast.onnx", head + "{ y = Exp(a) }")
    slow = write(tmp_path / "slow.onnx", head + "{ p = MatMul(a, a) q = MatMul(p, a) y = Exp(q) }")
    done = run("bench", slow, fast, "--seconds", "0.3")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["model", "median", "quartiles", "rounds"]
    assert lines[2].startswith(f"a  {slow}")
    assert lines[-2].startswith("b is faster: ")
    assert lines[-1] == (
        "on cpu, 1 thread, ONNX Runtime's optimizations on; made-up input: a 400x400"
    )
    assert (
        run("bench", fast, slow, "--seconds", "0.3")
        .out.splitlines()[-2]
        .startswith("b is slower: ")
    )


def test_bench_json(run: Run, resnet: Path, optimized: Path, samples: Path) -> None:
    given = ["--seconds", "0.1", "--threads", "2", "--no-ort-optimizations", "--data", samples]
    data = json.loads(run("bench", resnet, optimized, *given, "--json", "-").out)
    assert set(data) == {
        "schema", "models", "target", "threads", "ort_optimizations", "input", "speedup", "a", "b",
    }  # fmt: skip
    assert data["schema"] == "graphopt.bench/1"
    assert data["input"] == {"source": "data", "shapes": {"image": [8, 1, 32, 32]}}
    assert (data["threads"], data["ort_optimizations"]) == (2, False)
    assert set(data["a"]) == {
        "median", "low", "high", "ratio", "ratio_low", "ratio_high", "rounds", "calls",
    }  # fmt: skip
    assert data["a"]["ratio"] == 1
    assert data["speedup"]["median"] == pytest.approx(1 / data["b"]["ratio"])
    assert data["speedup"]["low"] <= data["speedup"]["median"] <= data["speedup"]["high"]


def test_bench_needs_the_same_inputs(run: Run, resnet: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "a.onnx", "g (float[2] a) => (float[2] logits) { logits = Exp(a) }")
    done = run("bench", resnet, other)
    assert done.code == 4
    assert "only the first has 'image' and only the second has 'a'" in done.err


# --- passes ---------------------------------------------------------------------------------------


def test_passes(run: Run) -> None:
    done = run("passes")
    assert (done.code, done.err) == (0, "")
    registry = default_registry()
    first, second = (part.splitlines() for part in done.out.split("\n\n"))
    assert [line.split()[0] for line in first[2:]] == registry.names()
    assert [line.split()[0] for line in second[2:]] == list(registry.pipelines())
    data = json.loads(run("passes", "--json", "-").out)
    assert set(data) == {"schema", "passes", "pipelines", "problems"}
    assert data["schema"] == "graphopt.passes/1"
    assert list(data["passes"]) == registry.names()
    assert data["pipelines"] == registry.pipelines()
    assert data["problems"] == []


def test_every_pass_and_pipeline_is_explained(run: Run) -> None:
    for name in (*default_registry().names(), *default_registry().pipelines()):
        done = run("passes", name)
        assert done.code == 0
        assert done.out.startswith(f"{name}: ")
        assert "Description(" not in done.out


@pytest.mark.usefixtures("toys")
def test_one_pass(run: Run) -> None:
    out = run("passes", "fuse-batch-norm").out
    assert out.startswith("fuse-batch-norm: rounding, opset ")
    assert "\nWhat it does\n  " in out
    assert "\nDeclines when\n  " in out
    assert run("passes", "raises").out == ("raises: rounding, from graphopt.register\nHas a bug.\n")
    data = json.loads(run("passes", "raises", "--json", "-").out)
    assert data["schema"] == "graphopt.passes/1"
    assert (data["name"], data["kind"], data["exactness"]) == ("raises", "pass", "rounding")
    wrong = run("passes", "fuse-btch-norm")
    assert wrong.code == 2
    assert wrong.err == (
        "error: no pass is called 'fuse-btch-norm'; did you mean 'fuse-batch-norm'?\n"
    )


# --- bisect ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toys")
def test_bisect(run: Run, resnet: Path) -> None:
    done = run("bisect", resnet, "--passes", "eliminate-noop,fuse-batch-norm,wrong-relu")
    assert (done.code, done.err) == (4, "")
    first, place, second, third = done.out.splitlines()
    assert place == "in the pass: wrong-relu"
    assert first.startswith("first bad action: ")
    assert "relu-to-sigmoid at %" in first or "relu_to_sigmoid at %" in first
    assert second.startswith("after it: logits[0, ")
    assert third.startswith("found in ")
    data = json.loads(run("bisect", resnet, "--passes", "raises", "--json", "-").out)
    assert set(data) == {
        "schema", "model", "pipeline", "action", "within", "index", "actions", "runs", "reason",
    }  # fmt: skip
    assert data["schema"] == "graphopt.bisect/1"
    assert (data["action"], data["index"], data["actions"]) == ("pass raises", 1, 1)
    assert data["reason"] == "pass raises raised KeyError: 'lost'"


def test_bisect_of_good_pipelines(run: Run, resnet: Path, samples: Path) -> None:
    done = run("bisect", resnet, "--passes", "cleanup", "--data", samples, "--seed", "3")
    assert done.code == 0
    assert done.out.startswith("all ")
    assert done.out.endswith(" actions are good\n")
    assert run("bisect", resnet, "--passes", "").out == "the pipeline does nothing\n"
    assert run("bisect", resnet, "--passes", "clenup").code == 2


# --- doctor ---------------------------------------------------------------------------------------


def test_doctor(run: Run) -> None:
    done = run("doctor")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "no problems found"
    data = json.loads(run("doctor", "--json", "-").out)
    assert set(data) == {
        "schema", "versions", "platform", "machine", "cpus", "providers", "provider_status",
        "passes", "pipelines", "problems",
    }  # fmt: skip
    assert data["schema"] == "graphopt.doctor/1"
    assert data["versions"]["onnx"] == metadata.version("onnx")
    assert "CPUExecutionProvider" in data["providers"]
    assert data["provider_status"]["CPUExecutionProvider"] == "ok"
    assert data["passes"] == len(default_registry().names())


def test_doctor_finds_two_builds_of_the_runtime(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}
    monkeypatch.setattr("graphopt.manager.instruments.versions", lambda: installed)
    done = run("doctor")
    assert done.code == 2
    assert "problem: onnxruntime and onnxruntime-gpu are both installed" in done.out
