"""Files, pipes, terminals and signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from graphopt.cli import main

if TYPE_CHECKING:
    from .conftest import Run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, terminals and signals of POSIX")
COMMAND = [sys.executable, "-m", "graphopt"]


# --- what cannot be written is found out before the work ------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("graphopt.api.load", fail)


@pytest.mark.usefixtures("no_work")
def test_output_is_checked_before_the_work(run: Run, resnet: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for out, message in (
        (tmp_path / "no" / "out.onnx", f"there is no folder {tmp_path / 'no'}"),
        (tmp_path, "it is a directory"),
        (pipe, "it is not a regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/out.onnx"), "No such file or directory"),
    ):
        if out.parent == Path("/proc") and not out.parent.is_dir():
            continue
        done = run("optimize", resnet, "-o", out)
        assert done == (2, "", f"error: {out} cannot be written: {message}\n")
    assert pipe.is_fifo()


@pytest.mark.usefixtures("no_work")
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_permissions(run: Run, resnet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = tmp_path / "out.onnx"
    file.write_bytes(b"mine")
    file.chmod(0o444)
    folder.chmod(0o555)
    for out, message in ((file, "it is read-only"), (folder / "a.onnx", "Permission denied")):
        done = run("optimize", resnet, "-o", out)
        assert done == (2, "", f"error: {out} cannot be written: {message}\n")


@pytest.mark.usefixtures("no_work")
def test_other_files_are_checked_before_the_work(run: Run, resnet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    for arguments, message in (
        (["--json", tmp_path / "no" / "x.json"], f"there is no folder {tmp_path / 'no'}"),
        (["--json", tmp_path], "it is a directory"),
        (["--json", out], f"--json would overwrite {out}"),
        (["--json", resnet], f"--json would overwrite {resnet}"),
        (["--dump", resnet], f"{resnet} is not a folder"),
        (["--reproducer", resnet], f"{resnet} is not a folder"),
    ):
        done = run("optimize", resnet, "-o", out, *arguments)
        assert done.code == 2
        assert message in done.err.splitlines()[0]
    for verb in (["inspect", resnet], ["verify", resnet, resnet], ["bench", resnet, resnet]):
        assert run(*verb, "--json", resnet).code == 2
    assert list(tmp_path.iterdir()) == []


def test_json_into_a_device_writes_and_does_not_replace_it(run: Run, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert run("passes", "O1", "--json", pipe).code == 0
    text, _ = reader.communicate(timeout=20)
    assert json.loads(text)["name"] == "O1"
    assert pipe.is_fifo()


def test_full_disk(resnet: Path, tmp_path: Path) -> None:
    """A file may not become larger than 100 kB here: the old file stays, and nothing is left."""
    import resource

    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    for extra in ([], ["--external-data"]):
        done = subprocess.run(
            [*COMMAND, "optimize", str(resnet), "-o", str(out), *extra],
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )
        message = f"error: {out} cannot be written: File too large\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
        assert out.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


# --- pipes ----------------------------------------------------------------------------------------


def closed_pipe(*arguments: object) -> tuple[int, bytes]:
    """Run a command whose standard output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    return done.returncode, done.stderr


def test_broken_pipes_change_no_result(resnet: Path, models_dir: Path) -> None:
    assert closed_pipe("passes") == (0, b"")
    assert closed_pipe("inspect", resnet, "--json", "-") == (0, b"")
    other = models_dir / "digits_vgg.onnx"
    assert closed_pipe("verify", resnet, other, "--exactness", "bitwise") == (4, b"")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_full_standard_output() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "passes"], stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_pipes_get_lines_as_they_are_and_columns_wraps_them(
    run: Run, resnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = run("inspect", resnet).out.splitlines()
    assert max(map(len, wide)) > 120
    assert not any(line != line.rstrip() for line in wide)
    monkeypatch.setenv("COLUMNS", "90")
    narrow = run("inspect", resnet).out.splitlines()
    assert max(map(len, narrow)) <= 90
    assert any(line.startswith("Conv      ...") for line in narrow)


@pytest.mark.skipif(os.name != "posix", reason="needs a locale of POSIX")
def test_names_beyond_the_encoding_of_the_terminal(tmp_path: Path) -> None:
    import graphopt

    model = graphopt.ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[2] a) => (float[2] y) { b = Relu(a) y = Relu(b) }"
    )
    node = next(iter(model.graph))
    node.outputs[0].name = "Maß\x1b[31m[bold]"
    path = tmp_path / "model.onnx"
    graphopt.save(model, path)
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [*COMMAND, "inspect", str(path)],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert b"\\x1b[31m[bold]" in done.stdout
        assert b"\x1b" not in done.stdout


# --- terminals ------------------------------------------------------------------------------------


def on_terminal(*arguments: object, columns: int = 100) -> tuple[int, str]:
    """Run a command whose output and errors go to a terminal."""
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while part := os.read(leader, 1 << 16):
            shown += part
    os.close(leader)
    return process.wait(timeout=60), shown.decode()


def test_terminals_see_progress_and_pipes_do_not(resnet: Path, tmp_path: Path, spawn: Run) -> None:
    given = ("optimize", resnet, "-o", tmp_path / "out.onnx")
    code, shown = on_terminal(*given)
    assert code == 0
    assert "\x1b[?25l" in shown  # a spinner hides the cursor; what it says depends on the moment
    assert "\x1b[1m" in shown
    final = shown[shown.rindex("\x1b[?25h") :]  # the cursor is back, and the progress gone
    assert "reading" not in final
    assert "Outputs agree" in final
    done = spawn(*given)
    assert done.err == ""
    assert "\x1b" not in done.out


def test_tables_fit_into_a_narrow_terminal(resnet: Path) -> None:
    _, shown = on_terminal("inspect", resnet, columns=80)
    lines = shown[shown.rindex("\x1b[?25h") :].splitlines()
    table = [line for line in lines if line.startswith("Conv ")]
    assert len(table) == 10
    assert all(line.rstrip().endswith(" %") and len(line) <= 80 for line in table)


# --- signals --------------------------------------------------------------------------------------


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 50
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_interrupt(resnet: Path, tmp_path: Path, slow_pass: dict[str, str]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "optimize", str(resnet), "-o", "out.onnx", "--passes", "cleanup,slow"],
        cwd=work,
        env=slow_pass,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(work / "began")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")
    assert [p.name for p in work.iterdir()] == ["began"]


def test_interrupt_while_saving(
    resnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", interrupt)
    for extra in ([], ["--external-data"]):
        assert main(["optimize", str(resnet), "-o", str(out), *extra]) == 130
        assert capsys.readouterr().err.strip() == "interrupted"
        assert out.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
