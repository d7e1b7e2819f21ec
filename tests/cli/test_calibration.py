"""Options of calibration: they reach passes, and mistakes are told in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.calibration import MinMax, collect
from graphopt.errors import ConfigError
from graphopt.manager.config import Config, parse_config
from graphopt.manager.text import parse


class Calibrating(graphopt.Pass):
    """Observes the input of the model, and changes nothing."""

    name = "calibrating"
    exactness = graphopt.Exactness.BITWISE

    def run(self, model: Any, ctx: graphopt.Context) -> bool:
        assert ctx.data is not None
        name = model.graph.inputs[0].name
        found = collect(model, {name: MinMax()}, ctx.data, executor=ctx.executor, cache=ctx.cache)
        (observer,) = found[name]
        assert isinstance(observer, MinMax)
        ctx.remark(f"{type(ctx.executor).__name__} saw {observer.count}")
        return False


@pytest.mark.parametrize(
    ("executor", "name"),
    [(None, "NoneType"), ("serial", "Serial"), ("threads:2", "ThreadPoolExecutor")],
)
def test_passes_get_executor_and_cache(
    executor: str | None, name: str, models_dir: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        result = graphopt.optimize(
            models_dir / "digits_resnet.onnx", Calibrating(), oracle="off",
            data=models_dir / "digits_calib.npz", executor=executor, cache=tmp_path / "cache",
        )  # fmt: skip
        (record,) = result.report.passes
        assert record.remarks[0].startswith(f"{name} saw ")
        assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_wrong_executor(models_dir: Path) -> None:
    with pytest.raises(ConfigError, match="the executor 'many' is none of serial"):
        graphopt.optimize(models_dir / "digits_resnet.onnx", executor="many")


def test_config_files() -> None:
    config = parse_config(
        'pipeline = "cleanup"\nexecutor = "processes:2"\ncache = "c"\ndata = "calib.npz"\n',
        base=Path("base"),
    )
    assert (config.executor, config.cache) == ("processes:2", Path("base/c"))
    assert config.data == Path("base/calib.npz")
    assert parse_config(config.to_toml(Path("base")), base=Path("base")) == config
    function = parse_config('pipeline = ""\ndata = "pack.calib:batches"\n', base=Path("base"))
    assert function.data == Path("pack.calib:batches")
    assert Config(pipeline=parse("cleanup")).executor is None


def test_command_line(run: Any, models_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    model = models_dir / "digits_resnet.onnx"
    shape = [1 if d is None or isinstance(d, str) else d for d in graphopt.ir.dims(
        graphopt.load(model).graph.inputs[0])]  # fmt: skip
    name = graphopt.load(model).graph.inputs[0].name
    (tmp_path / "cli_calib.py").write_text(
        "import numpy as np\n"
        f"def batches():\n    yield {{{name!r}: np.zeros({shape}, 'float32')}}\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run(
        "optimize", model, "-o", tmp_path / "out.onnx", "--data", "cli_calib:batches",
        "--executor", "threads:2", "--cache", tmp_path / "cache", "--json", "-",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["oracle"]["feeds"]["samples"] == 1
    done = run("optimize", model, "-o", tmp_path / "out.onnx", "--executor", "threads")
    assert done.code == 2
    assert "error: the executor 'threads' lacks a number of workers" in done.err
    (tmp_path / "file").write_text("")
    done = run("optimize", model, "-o", tmp_path / "out.onnx", "--cache", tmp_path / "file")
    assert done.code == 2
    assert "is not a folder" in done.err


def test_the_cli_reads_images(run: Any, models_dir: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    model = models_dir / "digits_resnet.onnx"
    dims = graphopt.ir.dims(graphopt.load(model).graph.inputs[0])
    assert dims is not None
    _, channels, height, width = dims
    image.fromarray(np.zeros((height, width), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "preprocess.json").write_text(
        json.dumps({"size": [height, width], "channels": "L" if channels == 1 else "RGB"})
    )
    done = run("verify", model, model, "--data", tmp_path)
    assert done.code == 0, done.err
