"""Train a small network on exact targets, and compare it with the optimum it cannot pass."""

import torch
from torch import nn

from diffgen import EmpiricalDenoiser, TrainingSet, processes

torch.manual_seed(0)
data = torch.randn(200, 2) * torch.tensor([1.0, 0.3])
process = processes.DDPM()
optimum = EmpiricalDenoiser(TrainingSet(data)).predictor(process, target="epsilon")

network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

for step in range(301):
    x0 = data[torch.randint(len(data), (256,))]
    t = torch.randint(process.num_steps, (256,))
    noise = torch.randn_like(x0)
    x_t = process.alpha(t).float()[:, None] * x0 + process.sigma(t).float()[:, None] * noise
    exact = optimum(x_t, t)  # E[noise | x_t] over the whole set: the usual target without its noise
    predicted = network(torch.cat([x_t, t[:, None] / process.num_steps], dim=1))
    loss = (predicted - exact).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        usual = (predicted - noise).square().mean()
        least = (exact - noise).square().mean()
        print(f"step {step:3}: gap {loss:.3f} = usual loss {usual:.3f} - least loss {least:.3f}")
