"""Which test images a network gets right, as text for a result row, and differences paired over these images."""

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def pack(correct: Iterable[bool]) -> str:
    """One bit for each test image, in the order of the test set: packed, compressed, base64."""
    bits = np.packbits(np.asarray(list(correct), dtype=bool))
    return base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()


def unpack(text: str, num_images: int) -> NDArray[np.bool_]:
    """The inverse of `pack`. Raises ValueError for a text that does not hold num_images bits."""
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"not the packed answers of {num_images} images: {error}") from error
    bits = np.frombuffer(data, np.uint8)
    if len(bits) != (num_images + 7) // 8:
        raise ValueError(f"not the packed answers of {num_images} images: {len(bits)} bytes")
    return np.unpackbits(bits, count=num_images).astype(bool)


@dataclass(frozen=True)
class Difference:
    """Points of accuracy, and the half width of its 95 % interval over test images."""

    points: float
    interval: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.interval:.2f}"


def difference(ours: Iterable[NDArray[np.bool_]], control: Iterable[NDArray[np.bool_]]) -> Difference:
    """Accuracy of `ours` minus that of `control`, each the mean over its seeds, in points.

    The images are the sample: d_i, what the two get right of image i in the mean over seeds, is averaged, and the
    interval is 1.96 standard errors of that mean. It does not hold the spread of seeds that were not run.
    """
    d = 100 * (np.mean(list(ours), axis=0, dtype=float) - np.mean(list(control), axis=0, dtype=float))
    return Difference(float(d.mean()), float(1.96 * d.std(ddof=1) / np.sqrt(len(d))))
