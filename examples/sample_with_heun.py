"""Sample from the optimum with Heun's method: what comes out is the training set."""

import torch

from diffgen import EmpiricalDenoiser, TrainingSet, sample, schedules

torch.manual_seed(0)
images = torch.randint(0, 256, (500, 3, 8, 8), dtype=torch.uint8)
denoiser = EmpiricalDenoiser(TrainingSet(images))

samples = sample(
    denoiser,
    shape=(16, 3, 8, 8),
    sigmas=schedules.karras(18),
    sampler="heun",
    generator=torch.Generator().manual_seed(0),
    progress=True,
)

# Distances to the nearest and second nearest training image: a ratio under 1/3 is a copy.
distances = denoiser.posterior(samples, 0.002, top_k=2).top_distances
copies = distances[:, 0] / distances[:, 1] < 1 / 3
print(f"{tuple(samples.shape)}: {int(copies.sum())} of 16 samples are copies of training images")
