"""PyTorch modules, by way of torch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from graphopt import ir
from graphopt.errors import FrontendError

__all__ = ["from_torch", "is_torch_module"]

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def is_torch_module(source: object) -> bool:
    """Whether ``source`` is a ``torch.nn.Module``; does not import torch."""
    nn = getattr(sys.modules.get("torch"), "nn", None)
    return nn is not None and isinstance(source, nn.Module)


def from_torch(module: Any, inputs: Any) -> ir.Model:
    """Export a ``torch.nn.Module`` in evaluation mode with ``torch.onnx.export(dynamo=True)``.

    The first dimension of every tensor input becomes dynamic where the exporter agrees; otherwise
    shapes stay those of the examples.

    Args:
        module: The module; the training flags of it and its parts are restored afterwards.
        inputs: Example inputs: a tuple of positional arguments or a dict of keyword arguments.

    Raises:
        FrontendError: There are no example inputs, or torch cannot export the module.
    """
    import torch

    if inputs is None:
        raise FrontendError("a torch module needs example inputs: load(module, inputs=(x,))")
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    if not isinstance(args, tuple):
        args = (args,)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        return ir.load(_export(torch, module, args, kwargs))
    finally:
        for part, training in modes:
            part.training = training


def _export(torch: Any, module: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    tensors = list((kwargs or {}).values()) or list(args)
    dynamic: Any = None
    if all(isinstance(t, torch.Tensor) and t.dim() for t in tensors):
        batch = torch.export.Dim("batch")
        shapes = [{0: batch} for _ in tensors]
        dynamic = dict(zip(kwargs, shapes, strict=True)) if kwargs else tuple(shapes)
    try:
        if dynamic is not None:
            # Some models fix the size of the batch; they are exported as the examples are.
            with contextlib.suppress(Exception):
                return _run(torch, module, args, kwargs, dynamic)
        return _run(torch, module, args, kwargs, None)
    except ImportError as e:
        raise FrontendError(f"torch's exporter needs a package: {e}") from e
    except Exception as e:  # noqa: BLE001 - the exporter raises whatever tracing meets
        raise FrontendError(f"torch cannot export {type(module).__name__}: {_reason(e)}") from e


def _reason(error: BaseException) -> str:
    # The exporter wraps what happened into advice on how to report it.
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLOUR.sub("", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _run(torch: Any, module: Any, args: tuple[Any, ...], kwargs: Any, dynamic: Any) -> Any:
    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            module, args, kwargs=kwargs, dynamo=True, dynamic_shapes=dynamic, verbose=False
        ).model
