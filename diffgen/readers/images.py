"""Image files as rows: decoded with Pillow, 8 bits a channel, one size for all."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from diffgen.errors import DataError
from diffgen.readers.limits import check_expansion
from diffgen.readers.random_access import blocks_of
from diffgen.readers.source import Array, Source, nothing

Image: TypeAlias = Any
"""A ``PIL.Image.Image``: Pillow is imported when the first image is read."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
"""Decoders that may see a stranger's bytes: none of them starts another program."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
"""Names that are images."""

OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".tga", ".ico")
"""Names that are images of formats that are not read: an error, not a file to pass over."""


def pillow() -> Any:
    """Pillow's Image module; ``ImportError`` with the way to get it."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'diffgen[images]'") from error


def open_image(content: bytes, where: str) -> Image:
    """Open an image without decoding its pixels.

    Args:
        content: Bytes of the file.
        where: Its name, for messages.

    Raises:
        DataError: Not an image of a known format, or one with more pixels than Pillow's limit.
        ImportError: Pillow is not installed.
    """
    module = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", module.DecompressionBombWarning)
            image: Image = module.open(io.BytesIO(content), formats=FORMATS)
            return image
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise DataError(f"{where}: not a readable image: {error}") from error


def to_array(image: Image, where: str) -> Array:
    """Decode the pixels.

    Grey and two-valued images have one channel, RGB three; palettes become RGB. Alpha is refused:
    what stands behind it is not in the file.

    Args:
        image: An opened image.
        where: Its name, for messages.

    Returns:
        ``(C, H, W)`` uint8.

    Raises:
        DataError: Alpha, more than 8 bits, another colour space, several frames, or damage.
    """
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        raise DataError(f"{where}: must have no alpha channel: flatten it first")
    modes = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}
    if image.mode not in modes:
        raise DataError(f"{where}: must be grey, RGB or palette with 8 bits, got {image.mode}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{where}: must have one frame, got {frames}")
    try:
        pixels = np.array(image.convert(modes[image.mode]), dtype=np.uint8)
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise DataError(f"{where}: damaged image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def image_source(
    path: str,
    names: Sequence[str],
    read: Callable[[str], Array | bytes],
    packed_bytes: int,
    labels: Tensor | None = None,
    close: Callable[[], None] = nothing,
    check: Callable[[], None] = nothing,
) -> Source:
    """Images, each in a file of its own, as a source.

    Args:
        path: Folder or archive, for messages.
        names: Names of the images, in the order of the rows.
        read: Gives the bytes of an image, or a member that is an array already.
        packed_bytes: Bytes of all files together, as they are stored.
        labels: ``(N,)`` int64, or None.
        close: Lets go of the archive.
        check: See ``Source``.

    Returns:
        Rows ``(N, C, H, W)``, uint8 unless the members are arrays of another type.

    Raises:
        DataError: No images; or, naming the file, an image of another size or type than the first.
    """
    if not names:
        raise DataError(f"{path}: must hold images ({', '.join(SUFFIXES)}), got none")

    def load(name: str, expected: tuple[int, ...] | None) -> Tensor:
        where = f"{path}: {name}"
        content = read(name)
        if not isinstance(content, bytes):
            return torch.from_numpy(content)
        image = open_image(content, where)
        # Compared before the pixels are decoded, so that a huge image among small costs nothing.
        if expected is not None and image.size != expected[:0:-1]:
            raise DataError(
                f"{where}: must have the size {expected[:0:-1]} of {names[0]}, got {image.size}"
            )
        return torch.from_numpy(to_array(image, where))

    first = load(names[0], None)
    shape = (len(names), *first.shape)
    check_expansion(path, prod(shape) * first.dtype.itemsize, packed_bytes)

    def fill(out: Tensor, start: int) -> None:
        for row, name in enumerate(names[start : start + len(out)]):
            image = load(name, tuple(first.shape))
            if image.shape != first.shape or image.dtype != first.dtype:
                raise DataError(
                    f"{path}: {name}: must have shape {tuple(first.shape)} and type "
                    f"{first.dtype} of {names[0]}, got {tuple(image.shape)} and {image.dtype}"
                )
            out[row] = image

    blocks = blocks_of(fill, shape, first.dtype)
    return Source(path, shape, first.dtype, blocks, labels, close, fill, check)
