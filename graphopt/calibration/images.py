"""Samples in folders of images, with a declaration of how the model wants them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from graphopt.calibration.files import naturally
from graphopt.calibration.samples import Samples
from graphopt.errors import CalibrationError
from graphopt.runtime.probe import InputSpec
from graphopt.runtime.values import Array, Feeds, element_type

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DECLARATIONS", "Preprocessing", "from_images", "images_in"]

DECLARATIONS = ("preprocess.json", "preprocess.toml")
_SUFFIXES = frozenset({
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip
_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images become the input of a model: resized, then ``(pixel * scale - mean) / std``.

    Attributes:
        size: Height and width of what the model gets.
        resize: ``stretch`` to the size; ``crop``: the shorter side becomes ``shorter``, and the
            middle is cut out; ``pad``: all of it fits in, the rest is filled with ``fill``; or
            ``none`` for images that have the size.
        shorter: Length of the shorter side before cropping; by default no longer than needed.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        channels: ``RGB``, ``BGR``, or ``L`` for gray.
        scale: Factor of the pixels, which are 0 to 255.
        mean: Subtracted after scaling; one number, or one for each channel.
        std: Divisor after that; likewise.
        fill: Value of padded pixels, 0 to 255.
        layout: ``NCHW`` or ``NHWC``.
    """

    size: tuple[int, int]
    resize: Literal["stretch", "crop", "pad", "none"] = "stretch"
    shorter: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fill: int = 0
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("resize", "interpolation", "channels", "layout"):
            if getattr(self, name) not in (choices := get_args(hints[name])):
                raise CalibrationError(
                    f"preprocessing: {name} is one of {', '.join(choices)}, not "
                    f"{getattr(self, name)!r}"
                )
        count = 1 if self.channels == "L" else 3
        right = {
            "size is [height, width]": _are(self.size, int, 2) and min(self.size) > 0,
            "shorter is a length in pixels": self.shorter is None or _are((self.shorter,), int, 1),
            f"mean is 1 or {count} numbers": _are(self.mean, (int, float), 1, count),
            f"std is 1 or {count} numbers but 0": _are(self.std, (int, float), 1, count)
            and 0 not in self.std,
            "scale is a number": _are((self.scale,), (int, float), 1),
            "fill is an integer": _are((self.fill,), int, 1),
        }
        for demand, met in right.items():
            if not met:
                raise CalibrationError(f"preprocessing: {demand}")

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """Read a declaration, JSON or TOML by its suffix, whose keys are the attributes.

        Raises:
            CalibrationError: The file cannot be read, or a key or value is wrong.
        """
        try:
            text = path.read_text(encoding="utf-8")
            table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as e:
            raise CalibrationError(f"{path} cannot be read: {e}") from e
        if not isinstance(table, dict):
            raise CalibrationError(f"{path} is no table of keys and values")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in table:
            if key not in known:
                raise CalibrationError(f"{path}: there is no key {key!r} but {', '.join(known)}")
        if "size" not in table:
            raise CalibrationError(f"{path} lacks 'size', the height and width the model takes")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in table.items()
        }
        try:
            return cls(**values)
        except CalibrationError as e:
            raise CalibrationError(f"{path}: {e}") from e

    def apply(self, image: Any) -> Array:
        """Turn a Pillow image into ``[channels, height, width]`` float32, or as the layout says."""
        resampling = getattr(_pillow().Resampling, self.interpolation.upper())
        image = self._sized(image.convert("L" if self.channels == "L" else "RGB"), resampling)
        pixels = np.asarray(image, np.float32)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        out = (pixels * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(out if self.layout == "NHWC" else out.transpose(2, 0, 1))

    def _sized(self, image: Any, resampling: Any) -> Any:
        height, width = self.size
        if self.resize == "none":
            if image.size != (width, height):
                raise CalibrationError(
                    f"is {image.size[1]} x {image.size[0]}, not {height} x {width}, and is not to "
                    "be resized"
                )
            return image
        if self.resize == "stretch":
            return image.resize((width, height), resampling)
        ratios = width / image.size[0], height / image.size[1]
        if self.resize == "pad":
            inner = [max(1, round(n * min(ratios))) for n in image.size]
            canvas = _pillow().new(image.mode, (width, height), (self.fill,) * len(image.mode))
            at = (width - inner[0]) // 2, (height - inner[1]) // 2
            canvas.paste(image.resize(inner, resampling), at)
            return canvas
        ratio = max(ratios) if self.shorter is None else self.shorter / min(image.size)
        inner = [max(1, round(n * ratio)) for n in image.size]
        if inner[0] < width or inner[1] < height:
            raise CalibrationError(
                f"becomes {inner[1]} x {inner[0]}, of which {height} x {width} cannot be cut"
            )
        left, top = (inner[0] - width) // 2, (inner[1] - height) // 2
        box = (left, top, left + width, top + height)
        return image.resize(inner, resampling).crop(box)


def _are(values: object, kind: Any, *counts: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) in counts
        and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
    )


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder and the folders in it, in natural order."""
    found = naturally(f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES)
    for inner in naturally(d for d in folder.iterdir() if d.is_dir()):
        found += images_in(inner)
    return found


def from_images(
    folder: Path,
    files: Sequence[Path],
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
    batch_size: int | None,
) -> Samples:
    """Samples that are images.

    Args:
        folder: The folder; one of :data:`DECLARATIONS` in it declares the preprocessing.
        files: The image files.
        specs: The inputs of the model, of which there is one.
        preprocessing: The preprocessing, instead of a declaration.
        batch_size: Images per batch where the model leaves it open; 8 by default.

    Raises:
        CalibrationError: Nothing declares the preprocessing, Pillow is not installed, or what comes
            out does not fit the input.
    """
    if preprocessing is None:
        declared = [folder / name for name in DECLARATIONS if (folder / name).exists()]
        if not declared:
            raise CalibrationError(
                f"{folder} holds images, and nothing says how the model wants them: put size, "
                "channels, scale, mean, std and layout into a preprocess.json there"
            )
        preprocessing = Preprocessing.read(declared[0])
    if len(specs) != 1:
        names = ", ".join(s.name for s in specs)
        raise CalibrationError(f"{folder} holds images, but the model has the inputs {names}")
    _pillow()
    spec = specs[0]
    fixed = spec.dims[0] if spec.dims else None
    size = fixed if isinstance(fixed, int) else min(batch_size or _BATCH, len(files))
    if not 1 <= size <= len(files):
        raise CalibrationError(
            f"{folder}: the model takes {size} images at a time, there are {len(files)}"
        )
    remarks = []
    if len(files) % size:
        remarks.append(f"{folder}: the last {len(files) % size} images do not fill a batch")

    def batches() -> Iterator[tuple[str, Feeds]]:
        for start in range(0, len(files) - size + 1, size):
            part = files[start : start + size]
            last = f" to {part[-1].name}" if size > 1 else ""
            stack = np.stack([_read(f, preprocessing) for f in part])
            yield f"{part[0]}{last}", {spec.name: _typed(stack, spec)}

    count = len(files)
    return Samples(str(folder), specs, batches, count // size, count=count, remarks=remarks)


def _typed(array: Array, spec: InputSpec) -> Array:
    """Pixels as integers where that is what the model takes; all else is checked later."""
    wanted = element_type(spec.type)
    if wanted not in ("uint8", "int8", "int32"):
        return array
    converted = array.astype(wanted)
    return converted if (converted == array).all() else array


def _read(path: Path, preprocessing: Preprocessing) -> Array:
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            return preprocessing.apply(image)
    except CalibrationError as e:
        raise CalibrationError(f"{path} {e}") from e
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as e:
        raise CalibrationError(f"{path} is truncated or not an image: {e}") from e


@functools.cache
def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as e:
        raise CalibrationError("reading images needs Pillow: pip install 'graphopt[images]'") from e
