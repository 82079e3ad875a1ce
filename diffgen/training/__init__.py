"""Training of networks: the loop, its moving average, checkpoints that resume exactly, logs."""

from diffgen.training.checkpoint import Checkpoint, checkpoints, latest_checkpoint, load_checkpoint
from diffgen.training.ensemble import Ensemble
from diffgen.training.ensemble_loop import train_ensemble
from diffgen.training.errors import NonFiniteLossError
from diffgen.training.evaluation import Evaluation
from diffgen.training.loop import train
from diffgen.training.result import TrainingResult
from diffgen.training.trained import load_denoiser, load_network

__all__ = [
    "Checkpoint",
    "Ensemble",
    "Evaluation",
    "NonFiniteLossError",
    "TrainingResult",
    "checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
    "load_denoiser",
    "load_network",
    "train",
    "train_ensemble",
]
