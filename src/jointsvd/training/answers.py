"""Which test images a network gets right, as text for a result row."""

import base64
import zlib
from collections.abc import Iterable

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
