"""Sample data as users have them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt import ir
from graphopt.calibration.files import from_file, from_folder
from graphopt.calibration.functions import from_function, is_reference
from graphopt.calibration.images import Preprocessing, from_images, images_in
from graphopt.calibration.samples import Samples, check_named
from graphopt.errors import CalibrationError
from graphopt.runtime.probe import input_specs
from graphopt.runtime.values import Feeds

__all__ = ["from_batches", "load_data"]


def load_data(
    path: str | os.PathLike[str],
    model: ir.Model | Sequence[ir.Value],
    *,
    batch_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Samples:
    """Find the samples of a model's inputs.

    - ``FILE.npz``: an array for each input, of its name, with samples along axis 0. Arrays of the
      input's rank are cut into batches; arrays of one more rank hold complete inputs, each a batch.
    - ``FILE.npy``: the same for the only input.
    - A folder of ``.npy`` files named after the inputs: the same as an ``.npz`` file.
    - A folder of ``.npz`` files, of ``.npy`` files for the only input, or of sub-folders with
      ``.npy`` files named after the inputs: each a batch. Shapes may vary from batch to batch.
    - A folder with sub-folders of ``input_0.pb``, ``input_1.pb``, ... in the order of the inputs,
      as ONNX test data come: each a batch.
    - A folder of images, which may be in folders of their own, and ``preprocess.json`` or
      ``preprocess.toml`` with the attributes of :class:`Preprocessing`.
    - ``module:function``: what a Python function without arguments returns, an iterable of dicts of
      arrays by input name. It is called anew whenever data are read.

    Args:
        path: The file or folder, or the function.
        model: The model, or its inputs.
        batch_size: Samples per batch where the model leaves it open; 8 by default.
        preprocessing: How images become inputs, instead of a declaration in the folder.

    Returns:
        The samples, which may be iterated over again and again; data are read as they are needed.

    Raises:
        CalibrationError: There are no data, or they do not fit the inputs.
    """
    specs = input_specs(ir.inputs(model) if isinstance(model, ir.Model) else model)
    if not specs:
        raise CalibrationError("the model has no inputs to feed")
    if is_reference(os.fspath(path)):
        return from_function(os.fspath(path), specs)
    path = Path(path)
    if path.is_dir():
        found = from_folder(path, specs, batch_size)
        if found is not None:
            return found
        if images := images_in(path):
            return from_images(path, images, specs, preprocessing, batch_size)
        raise CalibrationError(
            f"{path} holds no samples: no .npz, .npy or image files, and no .pb files, here or in "
            "its folders"
        )
    if path.suffix in (".npz", ".npy"):
        return from_file(path, specs, batch_size)
    what = "is no .npz or .npy file" if path.exists() else "does not exist"
    raise CalibrationError(
        f"{path} {what}: give an .npz file, a folder of .npz, .npy, .pb or image files, or "
        "module:function"
    )


def from_batches(
    batches: Mapping[str, Any] | Iterable[Mapping[str, Any]], model: ir.Model | Sequence[ir.Value]
) -> Samples:
    """Take batches that are in memory as samples of a model's inputs.

    Args:
        batches: Dicts of values by input name, or a single one. What has no length, such as a
            generator, is read into memory.
        model: The model, or its inputs.

    Returns:
        The samples; each batch is checked when it is read.

    Raises:
        CalibrationError: There are no batches, or a batch is no dict or lacks an input.
    """
    specs = input_specs(ir.inputs(model) if isinstance(model, ir.Model) else model)
    if isinstance(batches, Mapping):
        batches = [batches]
    kept: Any = batches if hasattr(batches, "__len__") else list(batches)
    if not len(kept):
        raise CalibrationError("the data holds no batches")
    remarks: list[str] = []

    def named() -> Iterator[tuple[str, Feeds]]:
        for i, batch in enumerate(kept):
            where = f"data, batch {i}"
            if not isinstance(batch, Mapping):
                kind = type(batch).__name__
                raise CalibrationError(f"{where} is no dict of arrays by input name, but {kind}")
            check_named(list(batch), specs, where, remarks)
            yield where, dict(batch)

    next(named())  # the first mistake is in all of them
    return Samples("data", specs, named, len(kept), count=None, remarks=remarks)
