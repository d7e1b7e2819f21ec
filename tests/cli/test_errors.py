"""Exit codes, and what a person reads when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import graphopt
from graphopt.cli import main
from graphopt.cli.failure import exit_code
from graphopt.manager.runner import PassManager

if TYPE_CHECKING:
    from .conftest import Run


def one_error(done: Any, code: int, message: str) -> None:
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "Traceback" not in done.err


# --- the input model: 3 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", [["optimize", "-o", "out.onnx"], ["inspect"], ["bisect"], ["verify", "x.onnx"]]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"hello\n", "is not an ONNX model, or is truncated (6 bytes)"),
        (b"\x00\x00\x00\x00ORTM", "is in ORT format"),
    ],
)
def test_unreadable_models(
    run: Run, tmp_path: Path, verb: list[str], content: bytes | None, message: str
) -> None:
    model = tmp_path / "model.onnx"
    if content is not None:
        model.write_bytes(content)
    given = [str(tmp_path / each) if each.endswith(".onnx") else each for each in verb]
    done = run(given[0], model, *given[1:])
    one_error(done, 3, f"{model} {message}")
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_truncated_model(run: Run, resnet: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(resnet.read_bytes()[:5000])
    one_error(run("inspect", model), 3, "is truncated (5000 bytes)")
    one_error(run("inspect", tmp_path), 3, "is a directory, not an ONNX file")


def test_a_model_that_does_not_run(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>\ng (float[2] a) => (float[2] y) '
    graphopt.save(graphopt.ir.parse_text(text + "{ y = my.Op(a) }"), model)
    for verb in ("verify", "bench"):
        one_error(run(verb, model, model), 3, "my:Op")
    one_error(run("bisect", model), 3, "my:Op")


# --- the command line and its files: 2 ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "fuse-btch-norm"], "did you mean 'fuse-batch-norm'?"),
        (["--passes", "cleanup,"], "column"),
        (["--passes", "fuse-batch-norm{x=1}"], "has no option 'x'"),
        (["--passes", "fixpoint{mx=2}(cleanup)"], "max"),
        (["--target", "cdua"], "there is no target 'cdua'; did you mean 'cuda'?"),
        (["--target", "zzz"], "there is no target 'zzz'; there are cpu, "),
        (["--config", "missing.toml"], "cannot read missing.toml"),
        (["--data", "missing.npz"], "missing.npz does not exist"),
        (["--data", "missing"], "missing does not exist: give an .npz file, a folder of"),
    ],
)
def test_arguments(
    run: Run, resnet: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run("optimize", resnet, "-o", tmp_path / "out.onnx", *arguments)
    one_error(done, 2, message)
    assert list(tmp_path.iterdir()) == []


def test_errors_in_text_have_a_caret(run: Run, resnet: Path, tmp_path: Path) -> None:
    text = "cleanup,fuse-btch-norm"
    done = run("optimize", resnet, "-o", tmp_path / "out.onnx", "--passes", text)
    assert done.err.splitlines()[1:] == [f"  {text}", "  " + " " * len("cleanup,") + "^"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imagee": (8, 1, 32, 32)}, "has no array for input 'image', it holds 'imagee'; did you"),
        ({}, "has no array for input 'image', it holds nothing"),
        ({"image": (0, 1, 32, 32)}, "holds no samples"),
        ({"image": (8, 1, 16, 32)}, "sample 0 to 7: input 'image' takes [batch, 1, 32, 32], not "),
        ({"image": (8, 32, 32)}, "sample 0 to 7: input 'image' takes [batch, 1, 32, 32], not "),
        ({"image": np.zeros((8, 1, 32, 32), np.uint8)}, "input 'image' takes float32, not uint8"),
        ({"image": np.zeros((8, 1, 32, 32), np.str_)}, "input 'image' takes float32, not <U1"),
        ({"image": np.full((8, 1, 32, 32), np.inf, np.float32)}, "sample 0 to 7: input 'image' is"),
        ({"image": np.full((8, 1, 32, 32), 1e300)}, "values of input 'image' do not fit into"),
        ({"image": np.array([None])}, "holds pickled Python objects"),
    ],
)
@pytest.mark.parametrize("verb", ["optimize", "verify", "bench", "bisect"])
def test_data_that_does_not_fit(
    run: Run, resnet: Path, tmp_path: Path, verb: str, arrays: dict[str, Any], message: str
) -> None:
    data = tmp_path / "data.npz"
    made = {k: np.zeros(v, np.float32) if isinstance(v, tuple) else v for k, v in arrays.items()}
    np.savez(data, **made)
    rest = {"optimize": ["-o", tmp_path / "out.onnx"], "verify": [resnet], "bench": [resnet]}
    done = run(verb, resnet, *rest.get(verb, []), "--data", data)
    one_error(done, 2, message)
    assert done.err.startswith(f"error: {data}")
    assert len(done.err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


def test_data_that_is_no_archive(run: Run, resnet: Path, tmp_path: Path) -> None:
    data, folder = tmp_path / "data.npz", tmp_path / "folder"
    data.write_text("not a zip file")
    folder.mkdir()
    for given, message in (
        (data, "is truncated or not an .npz archive"),
        (resnet, "is no .npz or .npy file: give an .npz file, a folder of .npz, .npy, .pb or"),
        (folder, "holds no samples: no .npz, .npy or image files, and no .pb files, here or"),
    ):
        one_error(run("verify", resnet, resnet, "--data", given), 2, f"{given} {message}")


def test_a_bad_file_in_a_folder_is_named(run: Run, resnet: Path, tmp_path: Path) -> None:
    image = np.zeros((2, 1, 32, 32), np.float32)
    np.savez(tmp_path / "0.npz", image=image)
    np.savez(tmp_path / "1.npz", image=image + np.nan)
    done = run("verify", resnet, resnet, "--data", tmp_path)
    one_error(done, 2, f"{tmp_path / '1.npz'}: input 'image' is nan at [0, 0, 0, 0]")


def test_without_onnxruntime(run: Run, resnet: Path, tmp_path: Path, no_runtime: None) -> None:
    out = tmp_path / "out.onnx"
    for arguments in (
        ["optimize", resnet, "-o", out],
        ["verify", resnet, resnet],
        ["bench", resnet, resnet],
        ["bisect", resnet],
    ):
        one_error(run(*arguments), 2, "onnxruntime is not installed. Install one of its two builds")
    assert "--oracle off" in run("optimize", resnet, "-o", out).err
    assert run("optimize", resnet, "-o", out, "--oracle", "off", "--passes", "cleanup").code == 0
    assert run("inspect", out).code == 0
    doctor = run("doctor")
    assert doctor.code == 2
    assert "problem: onnxruntime is not installed" in doctor.out


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installation without onnxruntime."""
    import sys

    from graphopt.runtime.session import ort

    ort.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    yield
    ort.cache_clear()


# --- the rest
# ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toys")
def test_verification_failed(run: Run, resnet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    for passes, message in (
        ("raises", "pass raises raised KeyError: 'lost'"),
        ("wrong-relu", "pass wrong-relu changed the numbers: logits["),
    ):
        given = ["optimize", resnet, "-o", out, "--on-mismatch", "raise", "--passes", passes]
        one_error(run(*given), 4, message)
    assert list(tmp_path.iterdir()) == []


def test_target_without_its_provider(
    run: Run, resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.runtime.session import ort

    monkeypatch.setattr(ort(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    done = run("bench", resnet, resnet, "--target", "cuda")
    one_error(done, 5, "target 'cuda' needs CUDAExecutionProvider, which this onnxruntime lacks")
    # Optimizing for what this machine is not is what a compiler is for.
    out = tmp_path / "out.onnx"
    assert run("optimize", resnet, "-o", out, "--target", "cuda", "--passes", "cleanup").code == 0


def test_exit_codes_of_errors() -> None:
    """Every error has a code, the one of the most specific class that has one."""
    codes = {
        name: exit_code(getattr(graphopt, name)("x"))
        for name in graphopt.__all__
        if isinstance(getattr(graphopt, name), type)
        and issubclass(getattr(graphopt, name), graphopt.GraphOptError)
    }
    assert codes == {
        "CalibrationError": 2, "ConfigError": 2, "ExportError": 2, "FrontendError": 3,
        "GoalNotMet": 6, "GraphOptError": 2, "NotApplicable": 2, "NumericalMismatch": 4,
        "PassFailed": 4, "PipelineSyntaxError": 2, "RuntimeUnavailable": 2, "SessionError": 3,
        "StructureError": 4,
        "TargetError": 5, "UnknownPassError": 2, "UnsupportedFeature": 3, "VerificationError": 4,
    }  # fmt: skip
    assert exit_code(KeyError("x")) == 1


@pytest.mark.parametrize(
    ("error", "code", "first", "traceback"),
    [
        (KeyError("lost"), 1, "internal error: KeyError: 'lost'", True),
        (MemoryError(), 1, "error: there is not enough memory", False),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left", False),
        (KeyboardInterrupt(), 130, "", False),
        (EOFError("lost"), 1, "internal error: EOFError: lost", True),
        (graphopt.PassFailed("a\x1b[31m\nb"), 4, "error: a\\x1b[31m", False),
    ],
)
def test_what_is_not_the_users_fault(
    resnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    first: str,
    traceback: bool,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(PassManager, "run", fail)
    out = tmp_path / "out.onnx"
    assert main(["optimize", str(resnet), "-o", str(out)]) == code
    err = capsys.readouterr().err
    lines = err.lstrip("\n").splitlines()
    assert lines[0].startswith(first)
    assert ("Traceback" in err) is traceback
    assert (lines[-1] == "interrupted") is (code == 130)
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_TRACEBACK", "1")
    done = run("inspect", "missing.onnx")
    assert done.code == 3
    assert done.err.startswith("error: ")
    assert "Traceback" in done.err
