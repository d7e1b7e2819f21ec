"""Trying execution providers, and asking which one takes what."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from graphopt import SessionError, ir
from graphopt.runtime import ProviderStatus, assignment, provider_status, providers
from graphopt.targets import get

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x) => (float[2,2] y) {
    a = MatMul(x, x)
    b = Softmax(a)
    y = Tanh(b)
}"""


def require(provider: str) -> None:
    """Skip without a provider; fail where GRAPHOPT_REQUIRE_EPS says that it has to be there."""
    status = provider_status(provider)
    if status.ok:
        return
    wanted = os.environ.get("GRAPHOPT_REQUIRE_EPS", "").split(",")
    give_up = pytest.fail if provider in wanted else pytest.skip
    give_up(f"{provider}: {status.reason}")


def test_the_cpu_works() -> None:
    assert provider_status("CPUExecutionProvider") == ProviderStatus("CPUExecutionProvider", True)


def test_what_is_not_there() -> None:
    status = provider_status("NoSuchExecutionProvider")
    assert not status.ok
    assert status.reason.startswith("this onnxruntime lacks it: it has ")


def test_a_provider_that_hangs() -> None:
    status = provider_status("CPUExecutionProvider", timeout=0.01)
    assert (status.ok, status.reason) == (False, "it did not answer within 0.01 s")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.abort()", "the process that tried it died of SIGABRT"),
        ("import sys; sys.exit('no libcudart')", "the process that tried it failed: no libcudart"),
        ("print()", "the process that tried it failed: it said nothing of use"),
        ("import json; print('noise'); print(json.dumps('it computes 3'))", "it computes 3"),
        (
            "print('\"1 : FAIL : fallback to CPU EP has been explicitly disabled\"')",
            "it does not start, or leaves a small model to the CPU",
        ),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="processes do not die of signals there")
def test_providers_that_break(program: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_PROGRAM", program)
    providers._status.cache_clear()
    try:
        assert provider_status("AnyExecutionProvider").reason == reason
    finally:
        providers._status.cache_clear()


def test_it_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = provider_status("CPUExecutionProvider")
    monkeypatch.setattr(providers, "_PROGRAM", "raise SystemExit('tried again')")
    assert provider_status("CPUExecutionProvider") is first
    assert not provider_status("CPUExecutionProvider", {"some": "option"}).ok


def test_wrong_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = providers._PROGRAM.replace("wanted = x @", "wanted = 2 * x @")
    assert wrong != providers._PROGRAM
    monkeypatch.setattr(providers, "_PROGRAM", wrong)
    providers._status.cache_clear()
    try:
        assert "it computes [[13.0, 16.0]" in provider_status("CPUExecutionProvider").reason
    finally:
        providers._status.cache_clear()


def test_assignment() -> None:
    found = assignment(ir.parse_text(TEXT), optimize=False)
    assert [op for _, op, _ in found.nodes] == ["MatMul", "Softmax", "Tanh"]
    assert found.counts == {"CPUExecutionProvider": 3}
    assert sum(found.partitions.values()) == 3


def test_assignment_of_what_does_not_load() -> None:
    text = TEXT.replace("Tanh(b)", "other.domain.Op(b)").replace(
        '["": 17]', '["": 17, "other.domain": 1]'
    )
    with pytest.raises(SessionError):
        assignment(ir.parse_text(text))


def test_old_runtimes_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        _session = object()

        def __enter__(self) -> Old:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(providers, "open_session", lambda *_, **__: Old())
    with pytest.raises(SessionError, match="does not tell which provider"):
        assignment(ir.parse_text(TEXT))


@pytest.mark.parametrize(
    "provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider"]
)
def test_accelerators_take_a_whole_model(provider: str, models_dir: Path) -> None:
    require(provider)
    target = next(
        t for n in ("cuda", "tensorrt", "openvino") if (t := get(n)).providers[0] == provider
    )
    found = assignment(models_dir / "digits_vgg.onnx", target.with_options, config=target.session)
    assert provider in found.counts
    assert found.counts[provider] > found.counts.get("CPUExecutionProvider", 0)
