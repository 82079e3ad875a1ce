"""Natural-looking images, generated: smooth, channels alike, some flat, clipped, 8-bit."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

CHUNK = 1_000
"""Images that share a seed; a shorter set is a prefix of a longer one."""

DUPLICATE_EVERY = 100
"""Each so-many-th image repeats the one before it, some pixels a grey level off."""

VALUE_RANGE = (-1.0, 1.0)


def natural_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Images whose amplitudes fall with the frequency as ``f^-1.5``, as in crops of photographs.

    White noise gives distances that all lie close together; images do not, and how many of them
    count at a noise level decides both the accuracy of a method and what it may skip. Hence smooth
    fields, with a contrast and a brightness of their own for each image, clipped like a photograph,
    and near-duplicates among them.

    Args:
        count: Number of images, N.
        shape: Channels, height and width.

    Returns:
        ``(N, *shape)`` uint8; ``u`` means ``-1 + 2 u / 255``. The same for every run.

    Example:
        >>> images = natural_images(3, (3, 8, 8))
        >>> images.shape, images.dtype
        (torch.Size([3, 3, 8, 8]), torch.uint8)
        >>> torch.equal(natural_images(2, (3, 8, 8)), images[:2])
        True
    """
    images = torch.empty((count, *shape), dtype=torch.uint8)
    for start in range(0, count, CHUNK):
        part = images[start : start + CHUNK]
        part.copy_(_chunk(start // CHUNK, shape)[: part.shape[0]])
    return images


def decode(images: Tensor) -> Tensor:
    """The float32 twin of 8-bit images: the same reals, each rounded once."""
    low, high = VALUE_RANGE
    decoded = torch.empty(images.shape, dtype=torch.float32)
    for part, out in zip(images.split(CHUNK), decoded.split(CHUNK), strict=True):
        out.copy_(part.to(torch.float64).mul_((high - low) / 255).add_(low))
    return decoded


def noisy_queries(points: Tensor, sigma: float, seed: int) -> Tensor:
    """Data points with Gaussian noise of standard deviation ``sigma``, as a sampler sees them."""
    generator = torch.Generator().manual_seed(seed)
    return points + sigma * torch.randn(points.shape, generator=generator)


def _chunk(index: int, shape: tuple[int, int, int]) -> Tensor:
    _, height, width = shape
    # A seed that no noise is drawn with: an image is filtered noise, and noise from the same stream
    # would point at it.
    generator = torch.Generator().manual_seed(zlib.crc32(f"images {index}".encode()))
    noise = torch.randn((CHUNK, *shape), generator=generator)
    rows = torch.fft.fftfreq(height)[:, None]
    columns = torch.fft.rfftfreq(width)[None, :]
    frequency = (rows * rows + columns * columns).sqrt()
    amplitude = frequency.clamp(min=1 / height) ** -1.5 * (frequency > 0)
    fields = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(height, width))
    # Most of what the channels of a photograph show is shared. Contrast and brightness are set so
    # that about a tenth of the images count at sigma = 5 and nearly all at 20, as with crops of
    # photographs.
    fields = 0.2 * fields + fields[:, :1]
    fields /= fields.flatten(1).std(1).clamp(min=1e-6)[:, None, None, None]
    contrast = 0.2 * torch.exp(0.8 * torch.randn((CHUNK, 1, 1, 1), generator=generator))
    brightness = 0.45 * torch.randn((CHUNK, 1, 1, 1), generator=generator)
    pixels = fields.mul_(contrast).add_(brightness).clamp_(*VALUE_RANGE)
    levels = pixels.add_(1).mul_(127.5).round_()
    originals = levels[DUPLICATE_EVERY - 2 :: DUPLICATE_EVERY]
    changed = torch.randint(-1, 2, originals.shape, generator=generator)
    levels[DUPLICATE_EVERY - 1 :: DUPLICATE_EVERY] = (originals + changed).clamp_(0, 255)
    return levels.to(torch.uint8)
