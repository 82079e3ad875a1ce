"""The training loop: steps, rows, evaluations and checkpoints in their order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffgen.optional import require
from diffgen.training.evaluation import Evaluation
from diffgen.training.interrupt import Interrupt
from diffgen.training.logs import LOGGERS, Log
from diffgen.training.result import TrainingResult
from diffgen.training.run import Objective, Run, refuse_checkpoints
from diffgen.training.settings import TrainingSettings
from diffgen.training_set import TrainingSet


def train(
    network: nn.Module,
    training_set: TrainingSet,
    objective: Objective,
    *,
    num_steps: int,
    batch_size: int = 128,
    optimizer: str = "adamw",
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    max_grad_norm: float | None = 1.0,
    accumulation_steps: int = 1,
    ema_decay: float | None = 0.999,
    seed: int = 0,
    test_set: TrainingSet | Tensor | None = None,
    evaluate_every: int | None = None,
    evaluation_times: Sequence[float] | Tensor | None = None,
    evaluation_samples: int = 256,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    resume: bool = True,
    logger: str | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    log_every: int = 100,
    progress: bool = False,
    accelerator: Any = None,
) -> TrainingResult:
    """Train a network on a training set, with Hugging Face accelerate.

    On one process, and under ``accelerate launch`` or ``torchrun`` on many (data parallel). On the
    CPU a run that was killed at any moment and is started again with the same arguments ends with
    the same weights, bit for bit, as one that was not, in the same environment. A first Ctrl-C
    lets the step finish, writes a checkpoint and then raises.

    Args:
        network: ``(x_t, t) -> prediction``, trained in place; `default_network` makes one.
        training_set: The points; drawn by their weights, mirror images included.
        objective: ``objective(network, x0, generator) -> loss``, one of `diffgen.objectives` or
            another callable; the loss is a mean over the batch ``x0 (b, *S)``.
        num_steps: Updates in all, those of the run that is resumed included.
        batch_size: Points of an update, over all processes and accumulated gradients together.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"`` (momentum 0.9).
        learning_rate: The highest.
        weight_decay: As the optimizer has it.
        schedule: How the rate falls: ``"cosine"``, ``"linear"`` or ``"constant"``.
        warmup_steps: Steps in which it rises linearly before.
        max_grad_norm: Norm at which gradients are clipped; None for none.
        accumulation_steps: Parts of the batch that gradients are summed over.
        ema_decay: Of the moving average of the parameters; None for no average.
        seed: Seed of the order of points, of noise, and of evaluations; not of the first weights.
        test_set: Points for the test loss of evaluations.
        evaluate_every: Steps between evaluations, and one at the end; None for no evaluation. They
            need an objective with ``process`` and ``target``.
        evaluation_times: Times of an evaluation; None for 8, equally spaced in log noise.
        evaluation_samples: Points of each kind in an evaluation.
        checkpoint_dir: Where checkpoints go, on a file system that all processes see; None for
            none.
        checkpoint_every: Steps between checkpoints; None for one at the end, or at Ctrl-C.
        keep_checkpoints: How many stay.
        resume: Whether to go on from the newest sound checkpoint there; otherwise there must be
            none.
        logger: ``"csv"`` (``history.csv``, ``evaluations.csv``), ``"tensorboard"``, or None.
        log_dir: Where the logs go; None for ``checkpoint_dir``.
        log_every: Steps in a row of the history.
        progress: Whether to show a bar.
        accelerator: An ``accelerate.Accelerator``; None makes one. ``Accelerator(cpu=True)`` keeps
            to the CPU, ``mixed_precision="bf16"`` computes in bfloat16.

    Returns:
        The network, its average, and the rows.

    Raises:
        ImportError: accelerate, safetensors or tensorboard is needed and not installed.
        ValueError: A setting out of range; a network without parameters; a checkpoint of a run
            with other settings, or of another architecture.
        DataError: Every checkpoint in the folder is damaged.
        NonFiniteLossError: The loss or its gradient is NaN or infinite. No checkpoint is written
            after that step.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.

    Example:
        >>> from diffgen import processes
        >>> from diffgen.networks import MLP
        >>> from diffgen.objectives import NoisePrediction
        >>> points = TrainingSet(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
        >>> network = MLP((2,), width=32, depth=1)
        >>> result = train(network, points, NoisePrediction(processes.DDPM()), num_steps=20)
        >>> result.network is network, result.history[-1]["step"]
        (True, 20)
    """
    settings = TrainingSettings(
        num_steps=num_steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup_steps=warmup_steps,
        max_grad_norm=max_grad_norm,
        accumulation_steps=accumulation_steps,
        ema_decay=ema_decay,
        seed=seed,
    )
    for name, value in (
        ("evaluate_every", evaluate_every),
        ("checkpoint_every", checkpoint_every),
        ("keep_checkpoints", keep_checkpoints),
        ("log_every", log_every),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    if checkpoint_every is not None and folder is None:
        raise ValueError("checkpoint_every needs a checkpoint_dir, got none")
    logs = folder if log_dir is None else Path(log_dir)
    _check_logger(logger, logs)
    accelerator = _accelerator(settings, accelerator)
    evaluation = None
    if evaluate_every is not None:
        process, target = _process_and_target(objective)
        evaluation = Evaluation(
            process, target, training_set, test_set, evaluation_times, evaluation_samples, seed
        )
    run = Run(network, training_set, objective, settings, accelerator)
    if folder is not None:
        if resume:
            run.resume(folder)
        else:
            refuse_checkpoints(folder)
    _check_same_step(run)
    run.start()
    log = _open_log(logger, logs, run)
    # What layers draw is seeded for each step; the caller's generators are as before afterwards.
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    every = _Every(log_every, evaluate_every, checkpoint_every)
    try:
        with torch.random.fork_rng(devices):
            _loop(run, every, evaluation, folder, keep_checkpoints, log, progress)
    finally:
        if log is not None:
            log.close()
        # Undoes what mixed precision wrapped around the network.
        accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    return TrainingResult(
        network=network,
        ema_network=run.ema_network,
        history=run.history,
        evaluations=run.evaluations,
        settings=run.identity,
        environment=run.environment,
        resumed_from=run.resumed_from,
    )


@dataclass(frozen=True)
class _Every:
    """After how many steps something is due; None for not at all."""

    log: int
    evaluate: int | None
    save: int | None


def _loop(
    run: Run,
    every: _Every,
    evaluation: Evaluation | None,
    folder: Path | None,
    keep: int,
    log: Log | None,
    progress: bool,
) -> None:
    accelerator, last = run.accelerator, run.settings.num_steps
    # Processes of one run stop at different steps, so that each would wait for the others.
    alone = folder is not None and accelerator.num_processes == 1
    bar = tqdm(
        total=last,
        initial=run.step,
        desc="training",
        unit="step",
        leave=False,
        disable=not (progress and accelerator.is_main_process),
    )
    with bar, Interrupt(active=alone) as interrupt:
        while run.step < last:
            run.advance()
            bar.update()
            if _due(every.log, run.step, last):
                row = run.log()
                bar.set_postfix(loss=f"{row['loss']:.4g}")
                _write(log, "history", [row])
            if evaluation is not None and _due(every.evaluate, run.step, last):
                if accelerator.is_main_process:
                    rows = evaluation.rows(run.ema_network or run.network, run.step)
                    run.evaluations += rows
                    _write(log, "evaluations", rows)
                accelerator.wait_for_everyone()
            if folder is not None and (
                interrupt.requested or run.step == last or _due(every.save, run.step, 0)
            ):
                run.save(folder, keep)
            if interrupt.requested:
                raise KeyboardInterrupt


def _due(every: int | None, step: int, last: int) -> bool:
    return every is not None and (step % every == 0 or step == last)


def _write(log: Log | None, table: str, rows: list[dict[str, Any]]) -> None:
    if log is not None:
        log.write(table, rows)


def _check_logger(logger: str | None, folder: Path | None) -> None:
    if logger is None:
        return
    if logger not in LOGGERS:
        raise ValueError(f"logger must be one of {', '.join(LOGGERS)}, got {logger!r}")
    if folder is None:
        raise ValueError("logger needs a log_dir or a checkpoint_dir, got neither")


def _open_log(logger: str | None, folder: Path | None, run: Run) -> Log | None:
    if logger is None or folder is None or not run.accelerator.is_main_process:
        return None
    return LOGGERS[logger](folder, {"history": run.history, "evaluations": run.evaluations})


def _accelerator(settings: TrainingSettings, given: Any) -> Any:
    """The accelerator, checked against what exact resuming needs."""
    made = require("accelerate", "accelerate", "study").Accelerator() if given is None else given
    if made.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"accelerator must compute in full precision or bf16, got {made.mixed_precision}"
        )
    if made.gradient_accumulation_steps != 1:
        raise ValueError(
            "accelerator must have gradient_accumulation_steps=1 (use accumulation_steps), "
            f"got {made.gradient_accumulation_steps}"
        )
    parts = made.num_processes * settings.accumulation_steps
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size must be divisible by {made.num_processes} processes x "
            f"{settings.accumulation_steps} accumulation_steps, got {settings.batch_size}"
        )
    return made


def _process_and_target(objective: Any) -> tuple[Any, str]:
    if not (hasattr(objective, "process") and hasattr(objective, "target")):
        raise ValueError(
            "evaluate_every needs an objective with a process and a target, "
            f"got {type(objective).__name__}"
        )
    return objective.process, objective.target


def _check_same_step(run: Run) -> None:
    """Every process must have found the same checkpoint.

    Raises:
        ValueError: They did not: the folder is not the same for all.
    """
    accelerator = run.accelerator
    if accelerator.num_processes > 1:
        own = torch.tensor([run.step], device=accelerator.device)
        steps = accelerator.gather(own).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"checkpoint_dir must be one folder for all processes, got steps {steps} in it"
            )
