"""``graphopt optimize`` and ``graphopt run``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import graphopt
from graphopt import ir
from graphopt.manager.report import PassRecord, Report

if TYPE_CHECKING:
    from .conftest import Run


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_main_job(run: Run, resnet: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = run("optimize", resnet, "-o", out, "--data", samples)
    assert (done.code, done.err) == (0, "")
    assert out.stat().st_size < resnet.stat().st_size
    assert graphopt.verify(resnet, out, data=samples).ok
    lines = done.out.splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert [line.split("  ")[0] for line in lines[2:6]] == [
        "nodes", "parameters", "size", "estimated time",
    ]  # fmt: skip
    assert lines[7].split() == ["pass", "result", "ms", "rewrites", "nodes", "size"]
    assert any(line.startswith("fuse-batch-norm ") and " ok " in line for line in lines)
    said = next(line for line in lines if line.startswith("Outputs"))
    assert said.startswith(
        "Outputs agree with the original's up to rounding on 2 of 16 batches of data and 2 made-up "
        "inputs (batch=1; batch=3); they differ by at most "
    )
    assert lines[-1] == (
        f"wrote {out}: {out.stat().st_size:,} bytes, was {resnet.stat().st_size:,}"
    )
    assert leftovers(tmp_path) == ["out.onnx"]


def test_levels(run: Run, resnet: Path, tmp_path: Path) -> None:
    nodes = []
    for level in range(4):
        out = tmp_path / f"{level}.onnx"
        done = run("optimize", resnet, "-o", out, f"-O{level}", "--json", "-")
        report = json.loads(done.out)
        assert done.code == 0
        assert report["pipeline"] == str(graphopt.parse(f"O{level}"))
        nodes.append(report["after"]["nodes"])
    assert (tmp_path / "0.onnx").read_bytes() == resnet.read_bytes()
    assert nodes[0] > nodes[1] > nodes[2] >= nodes[3]
    assert graphopt.verify(resnet, tmp_path / "1.onnx", exactness="bitwise").ok


def test_the_default_level_is_two(run: Run, resnet: Path, tmp_path: Path) -> None:
    done = run("optimize", resnet, "-o", tmp_path / "a.onnx", "--json", "-")
    assert json.loads(done.out)["pipeline"] == str(graphopt.parse("O2"))


def test_pipeline_text_and_config(run: Run, resnet: Path, tmp_path: Path) -> None:
    config = tmp_path / "pipeline.toml"
    config.write_text('pipeline = "cleanup,fuse-batch-norm"\noracle = "each"\n')
    reports = [
        json.loads(run("optimize", resnet, "-o", tmp_path / "a.onnx", *given, "--json", "-").out)
        for given in (
            ["--passes", "cleanup,fuse-batch-norm"],
            ["--config", config],
            ["--config", config, "--oracle", "off"],
        )
    ]
    assert len({r["pipeline"] for r in reports}) == 1
    assert [r["oracle"]["mode"] for r in reports] == ["end", "each", "off"]
    assert reports[1]["oracle"]["promise"] == "rounding"


def test_json_is_the_report(run: Run, resnet: Path, samples: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out.onnx", tmp_path / "report.json"
    to_stdout = run("optimize", resnet, "-o", out, "--data", samples, "--json", "-")
    to_file = run("optimize", resnet, "-o", out, "--data", samples, "--json", file)
    assert to_stdout.err == to_file.err == ""
    assert to_file.out.startswith(" ")
    first, second = json.loads(to_stdout.out), json.loads(file.read_text())
    assert set(first) == set(second) == {
        "schema", "changed", "pipeline", "target", "before", "after", "passes", "oracle",
        "remarks", "versions", "seconds", "model", "files",
    }  # fmt: skip
    assert first["schema"] == "graphopt.report/1"
    assert first["model"] == str(resnet)
    assert first["files"] == [{"path": str(out), "bytes": out.stat().st_size}]
    assert first["oracle"]["feeds"] == {
        "samples": 2, "batches": 16, "made": 2, "dims": [{"batch": 1}, {"batch": 3}], "seeds": [0],
    }  # fmt: skip
    report = Report.from_json(first)
    assert report.changed
    assert isinstance(report.passes[0], PassRecord)
    assert report.after.nodes == second["after"]["nodes"]


def test_data_in_a_folder(run: Run, resnet: Path, samples: Path, tmp_path: Path) -> None:
    images = np.load(samples)["image"]
    folder = tmp_path / "batches"
    folder.mkdir()
    for size in (1, 2, 10):
        np.savez(folder / f"{size}.npz", image=images[:size])
    done = run("optimize", resnet, "-o", tmp_path / "a.onnx", "--data", folder)
    assert done.code == 0
    assert "on 2 of 3 batches of data and" in done.out


def test_remarks_on_data_are_in_the_report(run: Run, resnet: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, image=np.zeros((11, 1, 32, 32)), label=np.zeros(11))
    out = run("optimize", resnet, "-o", tmp_path / "a.onnx", "--data", data).out
    assert "array 'label' is no input and is not used" in out
    assert "input 'image': float64 was converted to float32" in out


def test_in_place(run: Run, resnet: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    shutil.copy(resnet, model)
    model.chmod(0o640)
    assert run("optimize", model, "-o", model).code == 0
    assert model.stat().st_size < resnet.stat().st_size
    assert model.stat().st_mode & 0o777 == 0o640
    assert graphopt.verify(resnet, model).ok
    assert leftovers(tmp_path) == ["net.onnx"]


def test_external_data(run: Run, resnet: Path, tmp_path: Path) -> None:
    external, inline = tmp_path / "external.onnx", tmp_path / "inline.onnx"
    done = run("optimize", resnet, "-o", external, "--external-data")
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert leftovers(tmp_path) == ["external.onnx", "external.onnx.data"]
    assert done.out.splitlines()[-1].startswith(
        f"wrote {external} and {external}.data: {size:,} bytes"
    )
    assert run("optimize", external, "-o", inline, "--inline").code == 0
    (tmp_path / "external.onnx.data").unlink()
    assert graphopt.verify(resnet, inline).ok
    gone = run("inspect", external)
    assert gone.code == 3
    assert "external.onnx.data' of initializer" in gone.err


def test_quiet_and_verbose(run: Run, resnet: Path, tmp_path: Path) -> None:
    given = ("optimize", resnet, "-o", tmp_path / "a.onnx")
    assert run(*given, "-q") == (0, "", "")
    short, long = run(*given).out, run(*given, "-v").out
    assert " other passes had nothing to do, " in short
    assert " reasons (--verbose lists them)\n" in short
    assert "nothing to do" not in long
    assert "\ndeclined\n  " in long
    assert " unchanged " in long


def test_dump(run: Run, resnet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    run("optimize", resnet, "-o", tmp_path / "a.onnx", "--passes", "eliminate-noop,fuse-batch-norm",
        "--dump", folder)  # fmt: skip
    assert leftovers(folder) == [
        "000_input.txt",
        "001_eliminate-noop.txt",
        "002_fuse-batch-norm.txt",
    ]
    left = [f.read_text().count("= BatchNormalization") for f in sorted(folder.iterdir())]
    assert left[0] == left[1] > left[2]


@pytest.mark.usefixtures("toys")
def test_undone_passes_come_last_with_their_reasons(run: Run, resnet: Path, tmp_path: Path) -> None:
    text = "eliminate-noop,wrong-relu,raises,needs-data,fuse-batch-norm"
    done = run("optimize", resnet, "-o", tmp_path / "a.onnx", "--passes", text)
    assert done.code == 0
    tail = done.out[done.out.index("\nnot run\n") :].splitlines()[1:]
    assert tail[:3] == ["not run", "  needs-data: needs calibration data", ""]
    assert tail[3].startswith("Outputs agree")
    assert tail[4:6] == ["", "undone: 2 passes"]
    assert tail[6].startswith("  wrong-relu: changed the numbers: logits[0, ")
    assert tail[7:9] == ["  raises: raised KeyError: 'lost'", ""]
    assert len(tail) == 11
    assert tail[10].startswith("wrote ")
    assert graphopt.verify(resnet, tmp_path / "a.onnx").ok


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("oracle", ["each", "end"])
def test_reproducer(run: Run, resnet: Path, tmp_path: Path, oracle: str) -> None:
    out, folder = tmp_path / "a.onnx", tmp_path / "repro"
    done = run("optimize", resnet, "-o", out, "--passes", "eliminate-noop,wrong-relu", "--oracle",
               oracle, "--on-mismatch", "raise", "--reproducer", folder)  # fmt: skip
    assert (done.code, done.out) == (4, "")
    first, second = done.err.splitlines()
    assert first == f"what reproduces the first failure is in {folder}"
    assert second.startswith("error: pass wrong-relu changed the numbers: logits[0, ")
    assert (folder / "pipeline.txt").read_text() == "eliminate-noop,wrong-relu\n"
    assert not out.exists()


@pytest.mark.usefixtures("toys")
def test_oracle_off_lets_a_wrong_pass_through_and_says_so(
    run: Run, resnet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.onnx"
    given = ("optimize", resnet, "-o", out, "--passes", "wrong-relu", "--oracle", "off")
    # A sigmoid is no more nodes than a Relu, and as cheap by the estimate.
    done = run(*given, "--objective", "none", "--allow-growth")
    assert done.code == 0
    assert "\nOutputs were not compared.\n" in done.out
    assert not graphopt.verify(resnet, out).ok


@pytest.mark.usefixtures("toys")
def test_wrong_data_is_an_error_also_inside_of_a_pass(
    run: Run, resnet: Path, tmp_path: Path
) -> None:
    images = np.zeros((16, 1, 32, 32), np.float32)
    images[9] = np.nan
    np.savez(tmp_path / "data.npz", image=images)
    out = tmp_path / "a.onnx"
    done = run("optimize", resnet, "-o", out, "--passes", "needs-data", "--oracle", "off", "--data",
               tmp_path / "data.npz")  # fmt: skip
    assert done.code == 2
    assert done.err.startswith(
        f"error: {tmp_path / 'data.npz'}, sample 8 to 15: input 'image' is nan"
    )
    assert not out.exists()


def test_a_model_that_the_runtime_lacks_operators_for(run: Run, tmp_path: Path) -> None:
    model = graphopt.ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>\n'
        "g (float[2] a) => (float[2] y) { b = Identity(a) y = my.Op(b) }"
    )
    source, out = tmp_path / "custom.onnx", tmp_path / "out.onnx"
    graphopt.save(model, source)
    done = run("optimize", source, "-o", out)
    assert done.code == 0
    assert "\nOutputs were not compared: " in done.out
    assert "my:Op" in done.out
    assert len(list(graphopt.load(out).graph)) == 1


# --- run ----------------------------------------------------------------------------------------


def test_run(run: Run, resnet: Path, samples: Path, tmp_path: Path) -> None:
    config = tmp_path / "pipeline.toml"
    shutil.copy(resnet, tmp_path / "net.onnx")
    shutil.copy(samples, tmp_path / "samples.npz")
    config.write_text(
        'model = "net.onnx"\noutput = "out.onnx"\ndata = "samples.npz"\n[[passes]]\nname = "O1"\n'
    )
    done = run("run", config)
    assert done.code == 0
    assert "Outputs are bit by bit the original's on 2 of 16 batches of data" in done.out
    assert graphopt.verify(resnet, tmp_path / "out.onnx", exactness="bitwise").ok
    other = tmp_path / "other.onnx"
    report = json.loads(run("run", config, "--model", resnet, "-o", other, "--json", "-").out)
    assert report["model"] == str(resnet)
    assert other.read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert run("run", config, "-q") == (0, "", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pipelin = "O1"', "unknown key 'pipelin'; did you mean 'pipeline'?"),
        ('pipeline = "O1', "pipeline.toml: "),
        ('pipeline = "fuse-batch-nrm"', "did you mean 'fuse-batch-norm'?"),
        ('pipeline = "O1,,O2"', "column 4"),
        ('pipeline = "O1"', 'names no model: add model = "..." or give --model'),
        ('pipeline = "O1"\nmodel = "a"', 'names no output: add output = "..." or give --output'),
        ('pipeline = "O1"\noracle = "ech"', "did you mean 'each'?"),
        ('pipeline = "O1"\nmodel = "a"\noutput = "b"\ntarget = "cdua"', "did you mean 'cuda'?"),
    ],
)
def test_wrong_configurations(run: Run, tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "pipeline.toml"
    config.write_text(text)
    done = run("run", config)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert leftovers(tmp_path) == ["pipeline.toml"]


def test_outputs_that_cannot_be_compared_are_warned_of(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "private.onnx"
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "private" : 1]>\n'
        "g (float[2] a) => (float[2] y) { p = Identity(a)  y = private.Secret(p) }"
    )
    model.write_bytes(ir.to_bytes(ir.parse_text(text)))
    done = run("optimize", model, "-o", tmp_path / "out.onnx", "-q")
    assert done.code == 0
    assert done.err.startswith("warning: outputs were not compared: ")
    refused = run("optimize", model, "-o", tmp_path / "none.onnx", "-q", "--require-verified")
    assert refused.code == 4
    assert "outputs were not compared" in refused.err
    assert not (tmp_path / "none.onnx").exists()
