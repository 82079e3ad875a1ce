"""Denoise with the optimum of a training set, and look at what it leans on."""

import torch

from diffgen import EmpiricalDenoiser, TrainingSet

torch.manual_seed(0)
images = torch.randint(0, 256, (1000, 3, 8, 8), dtype=torch.uint8)  # any (N, *S): kept as uint8
training_set = TrainingSet(images)  # bytes 0..255 mean -1..1
denoiser = EmpiricalDenoiser(training_set)

for sigma in (0.2, 2.0, 20.0):
    clean = training_set[torch.arange(4)]
    noisy = clean + sigma * torch.randn_like(clean)
    posterior = denoiser.posterior(noisy, sigma, top_k=1)
    print(
        f"sigma {sigma:4}: error {(posterior.mean - clean).square().mean().sqrt():.3f},"
        f" effective neighbours {posterior.effective_sample_size.mean():6.1f} of 1000,"
        f" nearest points {posterior.top_indices.flatten().tolist()}"
    )
