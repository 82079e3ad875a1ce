"""Sample from a training set that lies in several processes, or in one.

Alone: ``python examples/sharded_sampling.py``; in two processes:
``torchrun --nproc-per-node 2 examples/sharded_sampling.py``.
"""

import hashlib
import os

import torch
import torch.distributed as dist

from diffgen import EmpiricalDenoiser, TrainingSet, sample, schedules

generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (3000, 3, 8, 8), dtype=torch.uint8, generator=generator)
training_set = TrainingSet(images)  # the same in all processes; usually TrainingSet.open(path)

rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if processes > 1:
    dist.init_process_group("gloo")
    training_set = training_set.shard(rank, processes)
denoiser = EmpiricalDenoiser(training_set)  # of all 3,000 images, wherever they are

# All processes make the same calls with the same noise, and get the same samples.
samples = sample(denoiser, (16, 3, 8, 8), schedules.karras(18), sampler="heun", generator=generator)
distances = denoiser.posterior(samples, 0.002, top_k=2).top_distances
copies = int((distances[:, 0] / distances[:, 1] < 1 / 3).sum())
if rank == 0:
    digest = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
    print(f"{copies} of 16 samples are copies of training images; sha256 {digest[:16]}")
if processes > 1:
    dist.destroy_process_group()
