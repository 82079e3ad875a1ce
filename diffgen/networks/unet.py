"""The U-Net of diffusers behind the signature of this library: ``(x_t, t) -> prediction``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from diffgen.networks.initialization import drawn_from
from diffgen.networks.time_scale import TimeScale
from diffgen.optional import require

_MOST_LEVELS = 5
_COARSEST = 4
"""A level of fewer pixels a side than this adds nothing."""

_ATTENTION_SIDE = 16
"""Self-attention stands at levels of at most this side that are no less than half of it."""


class UNet(nn.Module):
    """diffusers' ``UNet2DModel`` for images ``(C, H, W)``, sized for them; ``unet`` holds it.

    Each level halves the image, so that H and W must be divisible by ``2^(levels - 1)``.

    Args:
        sample_shape: ``(C, H, W)``.
        channels: Channels of each level, multiples of ``norm_groups``; None for 64 (below 32
            pixels) or 128, then twice that, in as many levels as the image can be halved.
        attention: Whether each level has self-attention; None for the levels of 8 to 16 pixels.
        layers_per_block: Residual blocks in a level.
        norm_groups: Groups of a group normalisation.
        time_scale: How times are read; a mapping of its fields is taken too. By default t is the
            whole time of a DDPM of 1,000 steps.
        generator: Source of the initial weights, on the CPU; None is PyTorch's own.

    Attributes:
        arguments: What rebuilds it, as JSON has it.
        unet: The ``UNet2DModel``, for ``save_pretrained`` and the pipelines of diffusers.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: Another shape of sample, or one that cannot be halved so often.

    Example:
        >>> network = UNet((3, 8, 8), (8, 16), norm_groups=4, layers_per_block=1)
        >>> network(torch.randn(2, 3, 8, 8), torch.tensor([0, 999])).shape
        torch.Size([2, 3, 8, 8])

    Source:
        Ho, Jain, Abbeel, Denoising diffusion probabilistic models (2020), appendix B.
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        channels: Sequence[int] | None = None,
        attention: Sequence[bool] | None = None,
        *,
        layers_per_block: int = 2,
        norm_groups: int = 32,
        time_scale: TimeScale | Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the initial weights; see the class."""
        super().__init__()
        self.sample_shape = tuple(int(size) for size in sample_shape)
        if len(self.sample_shape) != 3 or min(self.sample_shape) < 1:
            raise ValueError(f"sample_shape must be (C, H, W), got {self.sample_shape}")
        sides = self.sample_shape[1:]
        widths = default_channels(sides) if channels is None else tuple(channels)
        _check_channels(widths, sides, norm_groups)
        attends = _attention(min(sides), len(widths)) if attention is None else tuple(attention)
        if len(attends) != len(widths):
            raise ValueError(
                f"attention must have a value for each of {len(widths)} levels, got {len(attends)}"
            )
        self.time_scale = TimeScale.read(time_scale)
        self.arguments: dict[str, Any] = {
            "sample_shape": list(self.sample_shape),
            "channels": list(widths),
            "attention": list(attends),
            "layers_per_block": layers_per_block,
            "norm_groups": norm_groups,
            "time_scale": asdict(self.time_scale),
        }
        model = require("diffusers", "diffusers", "study").UNet2DModel
        with drawn_from(generator):
            self.unet: nn.Module = model(
                sample_size=sides,
                in_channels=self.sample_shape[0],
                out_channels=self.sample_shape[0],
                block_out_channels=widths,
                down_block_types=[_block("Down", attends_here) for attends_here in attends],
                up_block_types=[_block("Up", attends_here) for attends_here in reversed(attends)],
                layers_per_block=layers_per_block,
                norm_num_groups=norm_groups,
            )
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict.

        Args:
            x_t: Noisy images, ``(B, C, H, W)`` in the type of the parameters.
            t: Times, ``(B,)`` or one for all, of any numeric type.

        Returns:
            ``(B, C, H, W)``.

        Raises:
            ValueError: x_t has another sample shape.
        """
        if x_t.shape[1:] != self.sample_shape:
            raise ValueError(
                f"x_t must be (B, {', '.join(map(str, self.sample_shape))}), got {tuple(x_t.shape)}"
            )
        times = t.reshape(-1).expand(len(x_t))
        scale = self.time_scale.input_scale(times).to(x_t.dtype)[:, None, None, None]
        position = self.time_scale.position(times)
        predicted: Tensor = self.unet(scale * x_t, position, return_dict=False)[0]
        return predicted


def default_channels(sides: Sequence[int]) -> tuple[int, ...]:
    """Channels of the levels for images of such sides.

    Example:
        >>> default_channels((32, 32)), default_channels((28, 28)), default_channels((17, 17))
        ((128, 256, 256, 256), (64, 128, 128), (64,))
    """
    levels = 1
    while (
        levels < _MOST_LEVELS
        and all(side % 2**levels == 0 for side in sides)
        and min(sides) >> levels >= _COARSEST
    ):
        levels += 1
    first = 128 if min(sides) >= 32 else 64
    return (first, *[2 * first] * (levels - 1))


def _attention(side: int, levels: int) -> tuple[bool, ...]:
    return tuple(
        _ATTENTION_SIDE // 2 <= side >> level <= _ATTENTION_SIDE for level in range(levels)
    )


def _block(direction: str, attends: bool) -> str:
    return f"{'Attn' if attends else ''}{direction}Block2D"


def _check_channels(channels: tuple[int, ...], sides: tuple[int, ...], groups: int) -> None:
    if not channels or any(width < 1 or width % groups for width in channels):
        raise ValueError(f"channels must be multiples of norm_groups = {groups}, got {channels}")
    factor = 2 ** (len(channels) - 1)
    if any(side % factor for side in sides):
        raise ValueError(
            f"sample_shape must have sides divisible by {factor} for {len(channels)} levels, "
            f"got {sides}"
        )
