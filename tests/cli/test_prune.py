"""``graphopt prune`` and ``graphopt.prune``."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import graphopt
from graphopt import ir
from graphopt.analyses import Cost
from graphopt.cli.common import console
from graphopt.cli.prune_view import curve, show_result
from graphopt.errors import CalibrationError, ConfigError, GoalNotMet, VerificationError
from graphopt.pruning import pruner
from graphopt.runtime import open_session

if TYPE_CHECKING:
    from .conftest import Run

# Nothing is timed for it, so that results are the same everywhere.
ELSEWHERE = ("--target", "portable")
SAMPLES = 64


def redundant(image: str) -> ir.Model:
    """A network whose 16 hidden channels are 8, and 8 more that repeat them."""
    rng = np.random.default_rng(0)

    def text(array: Any) -> str:
        return "{" + ", ".join(f"{v:.6g}" for v in array.astype(np.float32).ravel()) + "}"

    eight = rng.normal(size=(8, 4, 3, 3)) / 6
    hidden = np.concatenate([eight, 2 * eight[::-1]])
    return ir.parse_text(f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[{image}] image) => (float[N,5] logits)
    <float[4,1,3,3] stem = {text(rng.normal(size=(4, 1, 3, 3)) / 3)},
     float[16,4,3,3] up = {text(hidden)},
     float[4,16,3,3] down = {text(rng.normal(size=(4, 16, 3, 3)) / 12)},
     float[5,4] head = {text(rng.normal(size=(5, 4)))},
     float[5] bias = {text(np.zeros(5))}> {{
      a = Conv <pads: ints = [1, 1, 1, 1]> (image, stem)
      b = Relu (a)
      c = Conv <pads: ints = [1, 1, 1, 1]> (b, up)
      d = Relu (c)
      e = Conv <pads: ints = [1, 1, 1, 1]> (d, down)
      f = Relu (e)
      p = GlobalAveragePool (f)
      q = Flatten (p)
      logits = Gemm <transB: int = 1> (q, head, bias)
    }}""")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network, with images of one size and of any size, and samples."""
    folder = tmp_path_factory.mktemp("prune")
    graphopt.save(redundant("N,1,8,8"), folder / "net.onnx")
    graphopt.save(redundant("N,1,H,W"), folder / "free.onnx")
    images = np.random.default_rng(1).normal(size=(SAMPLES, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", image=images)
    return folder


@pytest.fixture
def net(folder: Path) -> Path:
    return folder / "net.onnx"


@pytest.fixture
def data(folder: Path) -> Path:
    return folder / "data.npz"


def details_of(report: dict[str, Any], name: str = "prune-channels") -> dict[str, Any]:
    (found,) = (p["details"] for p in report["passes"] if p["name"] == name)
    assert isinstance(found, dict)
    return found


def words(line: str) -> str:
    return " ".join(line.split())


# --- what is written and printed ------------------------------------------------------------------


def test_half_of_the_work(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "small.onnx", tmp_path / "report.json"
    done = run(
        "prune", net, "-o", out, "--data", data, "--macs", "0.55", *ELSEWHERE, "--json", report
    )
    assert (done.code, done.err) == (0, "")
    small = graphopt.load(out)
    assert Cost(small).macs <= 0.55 * Cost(graphopt.load(net)).macs
    assert out.stat().st_size < 0.8 * net.stat().st_size
    images = np.load(data)["image"]
    with open_session(small, optimize=True) as session:
        found = session.run({"image": images})["logits"]
    with open_session(graphopt.load(net), optimize=True) as session:
        wanted = session.run({"image": images})["logits"]
    # Half of the channels repeat others, and what reads them can make up for all of that.
    assert np.square(found - wanted).sum() < 1e-4 * np.square(wanted).sum()

    details = details_of(json.loads(report.read_text()))
    (up,) = (row for row in details["groups"] if row["name"] == "c")
    assert (up["kind"], up["channels"], up["left"]) == ("channels", 16, 8)
    assert list(up["noise"]) == ["16", "12", "8", "4"]
    assert up["noise"]["16"] == 0 <= up["noise"]["8"] < 1e-4 < up["noise"]["4"]
    assert {"name": "logits", "reason": "'logits' is an output of the model"} in details["frozen"]
    assert details["left"]["macs"] <= 0.55
    assert details["macs"][1] == Cost(small).macs
    assert details["quality"]["aside"]
    assert details["quality"]["samples"] == SAMPLES // 8
    assert details["quality"]["sqnr_db"] > 40
    assert "speedup" not in details

    lines = done.out.splitlines()
    assert lines[0] == "pruned"
    assert any(
        x.startswith("MACs        76,052") and " -> " in x and x.endswith(" %") for x in lines
    )
    assert "speed       not measured: portable is for other runtimes" in lines
    assert any(
        x.startswith("quality     SQNR ") and x.endswith("predictions on 8 samples kept aside")
        for x in lines
    )
    (row,) = (x for x in lines if x.startswith("c "))
    assert row.split()[:3] == ["c", "16", "8"]
    assert row.endswith(curve(up, *bounds(lines)))
    assert lines[-1].startswith(f"wrote {out}: ")


def bounds(lines: Sequence[str]) -> tuple[float, float]:
    (legend,) = (x for x in lines if x.startswith("bars: "))
    low, high = legend.split("from ")[1].split(";")[0].split(" to ")
    return float(low.split()[0]), float(high.split()[0])


def test_in_place_and_quiet(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(net.read_bytes())
    done = run(
        "prune", model, "-o", model, "--data", data, "--params", "0.6", *ELSEWHERE, "-q",
        "--max-drop", "50",
    )  # fmt: skip
    assert (done.code, done.out, done.err) == (0, "", "")
    assert Cost(graphopt.load(model)).parameters <= 0.6 * Cost(graphopt.load(net)).parameters
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_without_samples(run: Run, net: Path, tmp_path: Path) -> None:
    done = run(
        "prune", net, "-o", tmp_path / "s.onnx", "--bytes", "0.7", "--criterion", "l2", "--ranking",
        "local", "--no-recover",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "speed       not measured: there are no samples to run" in done.out
    assert "quality     not measured, for want of samples (--data)" in done.out
    assert "bars:" not in done.out
    (row,) = (x for x in done.out.splitlines() if x.startswith("c "))
    assert row.split()[1] == "16" > row.split()[2]


def test_a_skipped_group_stays(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    done = run(
        "prune", net, "-o", tmp_path / "s.onnx", "--data", data, "--channels", "0.6", *ELSEWHERE,
        "--skip", "c", "--json", "-", "--least", "0.3", "--round-to", "1",
    )  # fmt: skip
    details = details_of(json.loads(done.out))
    assert {"name": "c", "reason": "it is to be skipped"} in details["frozen"]
    rows = {row["name"]: row for row in details["groups"]}
    assert sorted(rows) == ["a", "e"]
    assert all(min(map(int, row["noise"])) == 2 for row in rows.values())
    shapes = {ir.dims(v) for v in graphopt.load(tmp_path / "s.onnx").graph.initializers.values()}
    assert any(shape[0] == 16 for shape in shapes if shape)


def test_a_pattern_without_a_match_is_told(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    done = run(
        "prune", net, "-o", tmp_path / "s.onnx", "--data", data, "--channels", "0.6", *ELSEWHERE,
        "--skip", "nonsuch",
    )  # fmt: skip
    assert "nothing matches 'nonsuch', which was to be skipped" in words(done.out)


def test_images_of_any_size(run: Run, folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.onnx"
    done = run(
        "prune", folder / "free.onnx", "-o", out, "--data", data, "--macs", "0.55", *ELSEWHERE
    )
    assert (done.code, done.err) == (0, "")
    (image,) = ir.inputs(graphopt.load(out))
    assert ir.dims(image) == ("N", 1, "H", "W")
    assert any(x.split()[:3] == ["c", "16", "8"] for x in done.out.splitlines())


def test_a_single_sample_cannot_be_kept_aside(net: Path, data: Path) -> None:
    image = np.load(data)["image"][:1]
    result = graphopt.prune(net, data={"image": image}, target="portable", macs=0.9)
    assert not result.report.passes[-1].details["quality"]["aside"]
    text = io.StringIO()
    show_result(console(file=text), result, [], None, False)
    assert "on 1 samples that layers were fitted on, too" in text.getvalue()


def test_latency(
    run: Run, net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are the multiply-accumulates here: those of a machine without any overhead."""

    def race(model: ir.Model, forms: Any, inputs: Any, **_: Any) -> list[list[float]]:
        return [[Cost(form).macs / Cost(model).macs] * len(inputs) for form in forms]

    monkeypatch.setattr(pruner, "race", race)
    monkeypatch.setattr("graphopt.pruning.timing.race", race)
    monkeypatch.setattr("graphopt.measure.judge.race", race)
    out, report, cache = tmp_path / "s.onnx", tmp_path / "r.json", tmp_path / "cache"
    arguments = ("prune", net, "-o", out, "--data", data, "--cache", cache, "--json", report)
    done = run(*arguments, "--latency", "0.6")
    assert (done.code, done.err) == (0, "")
    assert Cost(graphopt.load(out)).macs <= 0.6 * 1.05 * Cost(graphopt.load(net)).macs
    details = details_of(json.loads(report.read_text()))
    (up,) = (row for row in details["groups"] if row["name"] == "c")
    assert up["saved"]["16"] == 0 < up["saved"]["12"] < up["saved"]["8"] < up["saved"]["4"] < 1
    one, batch = details["speedup"]
    assert one == batch >= 1 / 0.63
    speed = f"speed       {one:.2f}x as fast on one sample, {batch:.2f}x on a batch"
    assert speed in done.out.splitlines()
    assert "time saved" in done.out
    assert (cache / "latency.json").exists()
    out.unlink()
    done = run(*arguments, "--latency", "0.01")
    assert done.code == 6
    assert "latency cannot be brought to 0.01 of the original's" in done.err
    assert not out.exists()


def test_a_result_that_is_slower(
    run: Run, net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def race(model: ir.Model, forms: Any, inputs: Any, **_: Any) -> list[list[float]]:
        return [[1.25] * len(inputs) for _ in forms]

    monkeypatch.setattr(pruner, "race", race)
    monkeypatch.setattr("graphopt.pruning.timing.race", race)
    monkeypatch.setattr("graphopt.measure.judge.race", race)
    out = tmp_path / "s.onnx"
    done = run("prune", net, "-o", out, "--data", data, "--macs", "0.55")
    assert done.code == 6
    assert "the pruned model would be slower: 0.80x" in done.err
    assert not out.exists()


# --- several passes -------------------------------------------------------------------------------


def test_heads_layers_and_channels(run: Run, models_dir: Path, few: Path, tmp_path: Path) -> None:
    model, out = models_dir / "digits_transformer.onnx", tmp_path / "s.onnx"
    report = tmp_path / "r.json"
    done = run(
        "prune", model, "-o", out, "--data", few, "--heads", "0.8", "--layers", "1", "--macs",
        "0.9", *ELSEWHERE, "--json", report, "--min-sqnr", "3",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    found = json.loads(report.read_text())
    names = [p["name"] for p in found["passes"] if p["name"].startswith("prune-")]
    assert names == ["prune-heads", "prune-layers", "prune-channels"]
    heads = details_of(found, "prune-heads")["groups"]
    assert {row["kind"] for row in heads} == {"heads"}
    assert sum(row["left"] for row in heads) <= 0.8 * sum(row["channels"] for row in heads)
    gone = [r["name"] for r in details_of(found, "prune-layers")["layers"] if r["removed"]]
    assert len(gone) == 1
    total = details_of(found)["total"]
    assert total["quality"]["sqnr_db"] > 3
    assert total["quality"]["aside"]
    work = Cost(graphopt.load(out)).macs / Cost(graphopt.load(model)).macs
    assert work < 0.8
    lines = [words(x) for x in done.out.splitlines()]
    assert any(x.startswith("heads of before left") for x in lines)
    assert any(x.startswith(gone[0]) and x.endswith("removed as number 1") for x in lines)
    assert any(x.startswith(f"quality SQNR {total['quality']['sqnr_db']:.1f} dB") for x in lines)


def test_limits_hold_for_all_passes_together(
    models_dir: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.measure import Budget

    seen = []

    def obstacle(self: Budget, quality: Any) -> str | None:
        seen.append(quality)
        return "it is worse" if len(seen) == 3 else None

    monkeypatch.setattr(Budget, "obstacle", obstacle)
    with pytest.raises(GoalNotMet, match="what was pruned taken together, it is worse"):
        graphopt.prune(
            models_dir / "digits_transformer.onnx", data=few, target="portable", heads=0.8,
            layers=1, min_sqnr=0, recover=False,
        )  # fmt: skip


# --- dry runs -------------------------------------------------------------------------------------


def test_a_dry_run_without_samples(run: Run, models_dir: Path, tmp_path: Path) -> None:
    done = run("prune", models_dir / "digits_transformer.onnx", "--dry-run")
    assert (done.code, done.err) == (0, "")
    lines = [words(x) for x in done.out.splitlines()]
    assert lines[0] == "A dry run: nothing was changed or written."
    assert "heads of now left" in lines
    assert "/layers/layers.0/attention/qkv/MatMul_output_0 4 ?" in lines
    assert any(x.startswith("/layers/layers.0/Add_output_0 attention ") for x in lines)
    assert "/layers/layers.0/mlp/mlp.0/MatMul_output_0 128 ?" in lines
    assert "1 'logits' is an output of the model logits" in lines
    assert "Left would be" not in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_with_samples(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "s.onnx", tmp_path / "r.json"
    done = run(
        "prune", net, "-o", out, "--dry-run", "--data", data, "--macs", "0.55", *ELSEWHERE, "-v",
        "--json", report,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert not out.exists()
    found = json.loads(report.read_text())
    assert (found["changed"], found["files"]) == (False, [])
    details = details_of(found)
    assert {row["name"]: row["left"] for row in details["groups"]}["c"] == 8
    assert details["left"]["macs"] <= 0.55
    lines = done.out.splitlines()
    assert "There are no heads that may go." in lines
    assert "There are no layers beside shortcuts." in lines
    assert any(x.split()[:3] == ["c", "16", "8"] and "[" in x for x in lines)
    told = f"Left would be {details['left']['macs']:.3f} of the multiply-accumulates, "
    assert any(x.startswith(told) for x in lines)
    assert "logits              'logits' is an output of the model" in lines


def test_a_model_without_anything_to_prune(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    graphopt.save(
        ir.parse_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"""),
        path,
    )
    done = run("prune", path, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert "There are no channels that may go." in done.out
    np.savez(tmp_path / "data.npz", x=np.ones((4, 3), np.float32))
    out = ("-o", tmp_path / "o.onnx", "--data", tmp_path / "data.npz")
    for what, goal in (("channels", "--macs"), ("heads", "--heads"), ("layers", "--layers")):
        done = run("prune", path, *out, goal, "1" if what == "layers" else "0.5")
        assert (done.code, done.out) == (2, "")
        why = "no layer may go" if what == "layers" else f"there are no {what} to prune"
        assert done.err.startswith(f"error: the model cannot be pruned: {why}")
    assert not (tmp_path / "o.onnx").exists()


# --- goals that are missed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "why"),
    [
        (("--macs", "0.01"), "macs cannot be brought to 0.01 of the original's"),
        (("--macs", "0.5", "--min-sqnr", "200"), "is below 200 dB"),
    ],
)
def test_goals_that_are_missed(
    run: Run, net: Path, data: Path, tmp_path: Path, goal: Sequence[str], why: str
) -> None:
    out, report = tmp_path / "s.onnx", tmp_path / "r.json"
    out.write_bytes(b"old")
    done = run("prune", net, "-o", out, "--data", data, *goal, *ELSEWHERE, "--json", report)
    assert done.code == 6
    assert done.err.startswith("error: prune-channels{macs=")
    assert why in done.err
    assert done.err.count("\n") == 1
    assert done.out.startswith("Not pruned (prune-channels{macs=")
    assert any(x.startswith("c ") for x in done.out.splitlines())
    assert "wrote" not in done.out
    assert out.read_bytes() == b"old"
    found = json.loads(report.read_text())
    assert found["files"] == []
    assert why in details_of(found)["missed"]


def test_more_layers_than_may_go(models_dir: Path, few: Path) -> None:
    with pytest.raises(GoalNotMet, match=r"^prune-layers\{count=6 .*: 5 went, no more may"):
        graphopt.prune(
            models_dir / "digits_transformer.onnx", data=few, target="portable", layers=6,
            recover=False,
        )  # fmt: skip


def test_pipelines(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.onnx"
    arguments = ("optimize", net, "-o", out, "--data", data, *ELSEWHERE, "--passes")
    done = run(*arguments, "cleanup,prune-channels{macs=0.55}")
    assert (done.code, done.err) == (0, "")
    (remark,) = (x for x in done.out.splitlines() if x.startswith("  prune-channels: "))
    assert " of the multiply-accumulates are left; " in remark
    assert "SQNR " in remark
    out.unlink()
    done = run(*arguments, "cleanup,prune-channels{macs=0.01}")
    assert done.code == 6
    assert "macs cannot be brought to 0.01 of the original's" in done.err
    assert not out.exists()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "it has to be said what may remain: one of macs, params, bytes, latency, channels"),
        (("--macs", "1.5"), "macs is the fraction that remains, in (0, 1), not 1.5"),
        (("--macs", "0"), "macs is the fraction that remains, in (0, 1), not 0"),
        (("--macs", "nan"), "option 'macs' wants a number or none, not nan"),
        (("--macs", "half"), "'half' is not a valid float"),
        (("--macs", "0.5", "--bytes", "0.5"), "macs and bytes are different goals; give one"),
        (("--heads", "2"), "heads is the fraction that remains, in (0, 1), not 2"),
        (("--layers", "0"), "layers has to be 1 or more, not 0"),
        (("--macs", "0.5", "--least", "1"), "least is a share, in [0, 1), not 1"),
        (("--macs", "0.5", "--round-to", "0"), "round-to has to be 1 or more, not 0"),
        (("--macs", "0.5", "--max-drop", "101"), "max-drop is a share in percent"),
        (("--macs", "0.5", "--criterion", "l3"), "'l3' is not one of"),
        (("--macs", "0.5", "--target", "cpux64"), "there is no target 'cpux64'"),
        (("--macs", "0.5"), "need calibration data (--data)"),
        (("--heads", "0.5"), "the model cannot be pruned: there are no heads to prune"),
        (("--layers", "1"), "the model cannot be pruned: no layer may go"),
        (("--macs", "0.5", "--data", "missing.npz"), "missing.npz"),
        (("--drop-run",), "no such option '--drop-run'"),
    ],
)
def test_errors(run: Run, net: Path, tmp_path: Path, options: Sequence[str], why: str) -> None:
    done = run("prune", net, "-o", tmp_path / "s.onnx", *options)
    assert done.code == 2
    assert done.out == ""
    assert why in done.err
    assert done.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_output_is_needed(run: Run, net: Path, data: Path) -> None:
    done = run("prune", net, "--data", data, "--macs", "0.5")
    assert done.code == 2
    assert done.err.startswith("error: missing option '-o' / '--output'; --dry-run does without")


def test_latency_of_another_machine(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.onnx"
    done = run("prune", net, "-o", out, "--data", data, "--latency", "0.8", *ELSEWHERE)
    assert done.code == 2
    assert "latency cannot be measured: portable is for other runtimes" in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "array", "why"),
    [
        ("image", np.zeros((0, 1, 8, 8), np.float32), "no samples"),
        ("image", np.full((8, 1, 8, 8), np.nan, np.float32), "NaN"),
        ("image", np.zeros((8, 3, 8, 8), np.float32), "image"),
        ("pixels", np.zeros((8, 1, 8, 8), np.float32), "pixels"),
    ],
)
def test_bad_data(run: Run, net: Path, tmp_path: Path, name: str, array: Any, why: str) -> None:
    np.savez(tmp_path / "bad.npz", **{name: array})
    bad = ("--data", tmp_path / "bad.npz", *ELSEWHERE)
    for command in (("-o", tmp_path / "s.onnx", "--macs", "0.5"), ("--dry-run",)):
        done = run("prune", net, *command, *bad)
        assert (done.code, done.out) == (2, "")
        assert why in done.err
        assert not (tmp_path / "s.onnx").exists()


def test_data_on_which_the_model_computes_nothing(run: Run, net: Path, tmp_path: Path) -> None:
    """Samples of zeros: every layer reads zeros, outputs are zero, and no noise can be told."""
    np.savez(tmp_path / "zeros.npz", image=np.zeros((16, 1, 8, 8), np.float32))
    out = tmp_path / "s.onnx"
    done = run(
        "prune", net, "-o", out, "--data", tmp_path / "zeros.npz", "--macs", "0.5", *ELSEWHERE,
        "--min-sqnr", "10",
    )  # fmt: skip
    assert done.code in (0, 2, 6)
    assert "internal error" not in done.err
    assert out.exists() is (done.code == 0)


def test_a_model_that_is_carried_through(run: Run, tmp_path: Path) -> None:
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
    for command in (("-o", tmp_path / "s.onnx", "--macs", "0.5"), ("--dry-run",)):
        done = run("prune", path, *command)
        assert (done.code, done.out) == (2, "")
        assert "the model cannot be pruned: " in done.err
        assert "sparse initializers" in done.err


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_samples_are_not_overwritten(
    option: str, run: Run, net: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "data.npz"
    copy.write_bytes(data.read_bytes())
    other = [] if option == "--output" else ["-o", tmp_path / "s.onnx"]
    done = run("prune", net, *other, "--data", copy, "--macs", "0.5", option, copy)
    assert done.code == 2
    assert f"{option} would overwrite {copy}" in done.err
    assert copy.read_bytes() == data.read_bytes()


def test_interrupted(
    run: Run, net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pruner, "recovered", interrupt)
    out = tmp_path / "s.onnx"
    out.write_bytes(b"old")
    done = run("prune", net, "-o", out, "--data", data, "--macs", "0.5", *ELSEWHERE)
    assert (done.code, done.out, done.err.strip()) == (130, "", "interrupted")
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["s.onnx"]


# --- Python ---------------------------------------------------------------------------------------


def test_python(net: Path, data: Path) -> None:
    with np.load(data) as arrays:
        batches = iter([{"image": x} for x in arrays["image"].reshape(8, 8, 1, 8, 8)])
    result = graphopt.prune(net, data=batches, target="portable", macs=0.55, skip=["e"])
    assert result.report.pipeline.endswith("prune-channels{macs=0.55 skip=e}")
    assert result.report.passes[-1].details["quality"]["samples"] == 8
    dry = graphopt.prune(net, dry=True)
    assert not dry.report.changed
    assert [r["left"] for r in dry.report.passes[-1].details["groups"]] == [None, None, None]
    with pytest.raises(ConfigError, match="it has to be said what may remain"):
        graphopt.prune(net, data=data)
    with pytest.raises(ConfigError, match="did you mean 'macs'"):
        graphopt.prune(net, data=data, mac=0.5)
    with pytest.raises(ConfigError, match="need calibration data"):
        graphopt.prune(net, macs=0.5)
    with pytest.raises(GoalNotMet, match=r"macs cannot be brought to 0\.01"):
        graphopt.prune(net, data=data, target="portable", macs=0.01)
    with pytest.raises(CalibrationError):
        graphopt.prune(net, data={"pixels": np.zeros((1, 3), np.float32)}, macs=0.5)


def test_a_pass_that_was_undone(net: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(pruner, "recovered", fail)
    with pytest.raises(VerificationError, match=r"^prune-channels\{macs=0.5\} was undone: it "):
        graphopt.prune(net, data=data, target="portable", macs=0.5)
