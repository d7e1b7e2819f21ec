"""The images the reference models are trained and measured on.

scikit-learn's digits (1,797 scans of 8x8 pixels with 17 grey levels) are upsampled to 32x32, so
that convolutions have something to slide over. The dataset lists its writers one after the other,
hence the split cuts the list instead of shuffling it: the test images come from writers most of
whom the models have never seen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

__all__ = ["CALIBRATION_COUNT", "INPUT", "SIDE", "TEST_COUNT", "Digits", "digits", "write_samples"]

INPUT = "image"
"""Name of the input of every reference model, hence of the array in the sample files."""

SIDE = 32
"""Height and width of an image, in pixels."""

TEST_COUNT = 450
"""The last so many images of the dataset are the test split, the others the train split."""

CALIBRATION_COUNT = 128
"""So many images, evenly spaced over the train split, are the calibration samples."""

LEVELS = 64
"""Grey values are multiples of 1/64: finer than the source's 1/16, exact in float32 and bfloat16,
and easy to compress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """Images and labels, split.

    Attributes:
        train_images: float32 [1347, 1, 32, 32] in [0, 1], ink is 1.
        train_labels: int64 [1347], 0 to 9.
        test_images: float32 [450, 1, 32, 32], as above.
        test_labels: int64 [450].
        calibration: int64 [128], indices into the train images.
    """

    train_images: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.float32]
    test_labels: npt.NDArray[np.int64]
    calibration: npt.NDArray[np.int64]


def digits() -> Digits:
    """Load, upsample and split the dataset; the same arrays on every call and machine."""
    images, labels = load_digits(return_X_y=True)
    images = _upsample(images.reshape(-1, 8, 8) / 16.0)[:, None]
    labels = labels.astype(np.int64)
    train = len(images) - TEST_COUNT
    return Digits(
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        calibration=np.arange(CALIBRATION_COUNT, dtype=np.int64) * train // CALIBRATION_COUNT,
    )


def write_samples(folder: Path) -> list[Path]:
    """Write the calibration samples, the test samples and the test labels.

    Args:
        folder: An existing folder; files of the same name are replaced.

    Returns:
        The written files: two npz files with one array `image` each, samples along axis 0, and
        one npy file with the labels of the test samples.
    """
    data = digits()
    calibration = folder / "digits_calib.npz"
    test = folder / "digits_test.npz"
    labels = folder / "digits_test_labels.npy"
    np.savez_compressed(calibration, image=data.train_images[data.calibration])
    np.savez_compressed(test, image=data.test_images)
    np.save(labels, data.test_labels)
    return [calibration, test, labels]


def _upsample(images: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Bilinear interpolation of [N, 8, 8] in [0, 1] to [N, 32, 32], rounded to the grey levels."""
    weights = _bilinear(images.shape[1], SIDE)
    large = weights @ images @ weights.T
    return (np.round(large * LEVELS) / LEVELS).astype(np.float32)


def _bilinear(source: int, target: int) -> npt.NDArray[np.float64]:
    """Matrix [target, source] that interpolates linearly between pixel centres."""
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    centres = np.clip(centres, 0, source - 1)
    left = np.minimum(centres.astype(np.int64), source - 2)
    weights = np.zeros((target, source))
    weights[np.arange(target), left] = 1 - (centres - left)
    weights[np.arange(target), left + 1] = centres - left
    return weights
