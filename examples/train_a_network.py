"""Train a network, and see how far from the optimum of its training set it is."""

import torch

from diffgen import TrainingSet, processes
from diffgen.networks import default_network
from diffgen.objectives import NoisePrediction
from diffgen.training import train

generator = torch.Generator().manual_seed(0)
points = torch.randn(400, 2, generator=generator) * torch.tensor([1.0, 0.3])
process = processes.DDPM()

result = train(
    default_network((2,), process, width=64, generator=generator),
    TrainingSet(points[:200]),
    NoisePrediction(process),
    num_steps=300,
    test_set=points[200:],
    evaluate_every=100,
    evaluation_times=[300],
)

for row in result.evaluations:  # sums over the 2 values of a point
    print(
        f"step {row['step']}, {row['split']:5} points: loss {row['loss']:.3f},"
        f" of the optimum {row['optimum_loss']:.3f}, gap between them {row['gap']:.4f}"
    )
