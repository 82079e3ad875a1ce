"""One run of training on one process: its parts, one step of it, and its checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgen.training.average import moving_average
from diffgen.training.checkpoint import (
    STATE,
    Checkpoint,
    checkpoints,
    latest_checkpoint,
    save_checkpoint,
)
from diffgen.training.evaluation import point_type
from diffgen.training.identity import changes, environment, identity
from diffgen.training.learning_rates import factor
from diffgen.training.logs import Row
from diffgen.training.meter import Meter
from diffgen.training.optimizers import make_optimizer
from diffgen.training.order import BatchOrder
from diffgen.training.seeds import derived_seed
from diffgen.training.settings import TrainingSettings, differences
from diffgen.training.state import capture, restore
from diffgen.training_set import TrainingSet

Objective = Callable[[Any, Tensor, torch.Generator], Tensor]
"""``(network, x0, generator) -> loss``, a scalar."""


class Run:
    """Network, average, optimizer and rows of a run, at some step.

    Everything that is drawn follows from the seed, the step and the number of the process, so that
    a checkpoint needs no state of a generator and a resumed run draws what the first one would.

    Attributes:
        step: Steps that are done.
        history: Rows of the training loss.
        evaluations: Rows of the evaluations.
        identity: What a resumed run must share.
        environment: What the last bits depend on beside it.
        resumed_from: Step of the checkpoint that was loaded, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        training_set: TrainingSet,
        objective: Objective,
        settings: TrainingSettings,
        accelerator: Any,
    ) -> None:
        """Put the parts together at step 0."""
        self.settings = settings
        self.accelerator = accelerator
        self.network = network.to(accelerator.device)
        self._training_set = training_set
        self._objective = objective
        self._optimizer = make_optimizer(
            settings.optimizer, network.parameters(), settings.learning_rate, settings.weight_decay
        )
        decay = settings.ema_decay
        self._average = None if decay is None else moving_average(network, decay)
        self._order = BatchOrder(training_set, settings.batch_size, settings.seed)
        self._factor = factor(settings.schedule, settings.warmup_steps, settings.num_steps)
        self._kind = point_type(network)
        self._generator = torch.Generator(accelerator.device)
        self._meter = Meter(accelerator)
        self.step = 0
        self.history: list[Row] = []
        self.evaluations: list[Row] = []
        self.identity = identity(
            settings, network, training_set, objective, accelerator.num_processes
        )
        self.environment = environment(accelerator.device)
        self.resumed_from: int | None = None

    @property
    def ema_network(self) -> nn.Module | None:
        """The network of the moving average."""
        return None if self._average is None else self._average.module

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.settings.learning_rate * self._factor(step)

    def resume(self, folder: Path) -> None:
        """Go on from the newest sound checkpoint of a folder, if there is one.

        Raises:
            ValueError: It is of another run: other settings, data, objective or architecture.
            DataError: There are checkpoints, and all are damaged.
        """
        found = latest_checkpoint(folder)
        if found is None:
            return
        path, checkpoint = found
        record = checkpoint.record
        different = changes(self.identity, record["identity"])
        if different:
            raise ValueError(
                f"{path / STATE}: of a run with other settings (resume=False and another "
                f"checkpoint_dir start anew): {'; '.join(different)}"
            )
        if checkpoint.step > self.settings.num_steps:
            raise ValueError(
                f"num_steps must be at least the {checkpoint.step} of {path}, "
                f"got {self.settings.num_steps}"
            )
        changed = differences(self.environment, record["environment"])
        if changed:
            warnings.warn(
                f"resumed in another environment, in which the last bits may differ: "
                f"{'; '.join(changed)}",
                stacklevel=2,
            )
        restore(
            path,
            checkpoint.tensors,
            record["optimizer"],
            self.network,
            self._average,
            self._optimizer,
        )
        if self._average is not None:
            self._average.n_averaged.fill_(checkpoint.step)
        self._meter = Meter(self.accelerator, record["open_row"])
        self.history, self.evaluations = record["history"], record["evaluations"]
        self.step = self.resumed_from = checkpoint.step

    def start(self) -> None:
        """Hand the parts to accelerate; after `resume`, before the first step."""
        for group in self._optimizer.param_groups:
            group["initial_lr"] = self.settings.learning_rate
        self._rates = LambdaLR(self._optimizer, self._factor, last_epoch=self.step - 1)
        self._prepared = self.accelerator.prepare_model(self.network)
        self._prepared_optimizer = self.accelerator.prepare_optimizer(self._optimizer)
        self._prepared.train()

    def advance(self) -> None:
        """One step: gradient of the loss over the batch, and the update."""
        settings, accelerator = self.settings, self.accelerator
        place = self.step, accelerator.process_index
        self._generator.manual_seed(derived_seed(settings.seed, "noise", *place))
        # Layers that draw by themselves (dropout) take PyTorch's own generators.
        torch.manual_seed(derived_seed(settings.seed, "layers", *place))
        parts = self._order.batch(self.step).chunk(accelerator.num_processes)
        losses = []
        pieces = parts[accelerator.process_index].chunk(settings.accumulation_steps)
        for number, indices in enumerate(pieces):
            x0 = self._training_set[indices].to(accelerator.device, self._kind)
            last = number == len(pieces) - 1
            with nullcontext() if last else accelerator.no_sync(self._prepared):
                loss = self._objective(self._prepared, x0, self._generator) / len(pieces)
                if self.step == (self.resumed_from or 0):
                    check_loss(loss)
                accelerator.backward(loss)
            losses.append(loss.detach())
        limit = float("inf") if settings.max_grad_norm is None else settings.max_grad_norm
        norm = accelerator.clip_grad_norm_(self._prepared.parameters(), limit)
        self._prepared_optimizer.step()
        self._rates.step()
        self._prepared_optimizer.zero_grad()
        if self._average is not None:
            self._average.update_parameters(self.network)
        self._meter.add(torch.stack(losses).sum(), norm)
        self.step += 1

    def log(self) -> Row:
        """Close a row of the history."""
        self._meter.settle(self.step, self.learning_rate)
        means = self._meter.row()
        row = {
            "step": self.step,
            "epoch": self.step * self.settings.batch_size / len(self._training_set),
            "loss": means["loss"],
            "grad_norm": means["grad_norm"],
            "learning_rate": self.learning_rate(self.step - 1),
        }
        self.history.append(row)
        return row

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint of this step, on the main process."""
        open_row = self._meter.settle(self.step, self.learning_rate)
        if self.step != self.resumed_from and self.accelerator.is_main_process:
            tensors, values = capture(self.network, self._average, self._optimizer)
            record = {
                "identity": self.identity,
                "environment": self.environment,
                "optimizer": values,
                "open_row": open_row,
                "history": self.history,
                "evaluations": self.evaluations,
            }
            save_checkpoint(folder, Checkpoint(self.step, tensors, record), keep)
        self.accelerator.wait_for_everyone()


def check_loss(loss: Any) -> None:
    """Check what an objective returned.

    Raises:
        TypeError: No tensor.
        ValueError: No scalar, or one that does not depend on the parameters.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"objective must return a tensor, got {type(loss).__name__}")
    if loss.ndim != 0 or not loss.requires_grad:
        raise ValueError(
            "objective must return a scalar that depends on the network's parameters, "
            f"got shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
        )


def refuse_checkpoints(folder: Path) -> None:
    """Check that a run that starts anew would not mix with another.

    Raises:
        ValueError: There are checkpoints in the folder.
    """
    found = checkpoints(folder)
    if found:
        raise ValueError(
            f"checkpoint_dir must hold no checkpoints with resume=False, got {len(found)} in "
            f"{folder}"
        )
