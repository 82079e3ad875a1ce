"""Time-conditioned networks ``(x_t, t) -> prediction``, for training; any other callable will do.

`default_network` picks one for a shape: `MLP` for samples of few values, `UNet` (diffusers'
``UNet2DModel``) for images. `describe` and `build` go to plain data and back, for checkpoints.
"""

from diffgen.networks.mlp import MLP
from diffgen.networks.table import NETWORKS, build, default_network, describe
from diffgen.networks.time_scale import TimeScale
from diffgen.networks.unet import UNet

__all__ = ["MLP", "NETWORKS", "TimeScale", "UNet", "build", "default_network", "describe"]
