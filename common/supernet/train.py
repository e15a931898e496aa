"""Training of a supernet: the sandwich rule with in-place distillation.

Source: sandwich rule and in-place distillation, Universally Slimmable Networks (Yu and Huang, 2019), as BigNAS (Yu et
al., 2020) applies them. Each step runs the largest subnet on the labels, then the smallest and a few random subnets on
the largest's predictions, and adds up their gradients in the shared weights.

Every random choice is a function of seed and step, so that a resumed run does what the uninterrupted one would have
done. A run is bounded by epochs, or by seconds of training: then the learning rate follows the clock, so that it ends
in time on a machine of any speed.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.supernet.actuate import Elastic, apply
from common.supernet.data import DataError
from common.supernet.spec import Control, Space


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. Exactly one of `epochs` and `seconds` is set.

    warmup: share of the run in which the learning rate rises; the rest falls as a cosine to 0.
    random_subnets: subnets per step besides the largest and the smallest; None trains the largest alone, as before a
    supernet is made of it. clip: largest norm of a gradient.
    """

    epochs: float | None = None
    seconds: float | None = None
    batch: int = 96
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    random_subnets: int | None = 2
    clip: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.seconds is None):
            raise ValueError(f"set either epochs or seconds, got epochs={self.epochs}, seconds={self.seconds}")

    def students(self, space: Space, rng: random.Random) -> tuple[Control, ...]:
        """The subnets that learn from the largest in a step."""
        if self.random_subnets is None:
            return ()
        return (space.smallest, *(space.sample(rng) for _ in range(self.random_subnets)))


class Source(Protocol):
    """Training data: rows of inputs with labels, batched as the data's kind wants it."""

    def __len__(self) -> int:
        """Number of rows."""

    def order(self, batch: int, shuffle: torch.Generator) -> Tensor:
        """Row numbers in the order of one epoch, [rows]; batches are cut from it."""

    def batch(self, rows: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs [N, ...], augmented by random draws, and labels [N] of some rows."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: losses of the largest, of the smallest, and the mean of the random subnets."""

    index: int
    largest: float
    smallest: float
    others: float


class Trainer:
    """A training run: model, optimizer and how far it is; `step` takes it on by one batch.

    model: a supernet that maps inputs [N, ...] to scores [N, classes].
    """

    def __init__(self, model: Elastic, train: Source, recipe: Recipe) -> None:
        if len(train) < recipe.batch:
            raise DataError(f"{len(train)} training rows are fewer than one batch of {recipe.batch}")
        self.model = model.channels_last().train()
        self.train, self.recipe = train, recipe
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]  # biases and norms
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.steps, self.seconds = 0, 0.0
        self._order = (-1, torch.empty(0))  # epoch, its order of the training rows

    @property
    def epochs(self) -> float:
        """Passes over the training rows so far."""
        return self.steps / (len(self.train) // self.recipe.batch)

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        done = self.epochs / self.recipe.epochs if self.recipe.epochs else self.seconds / (self.recipe.seconds or 1.0)
        return min(done, 1.0)

    def step(self) -> Step:
        """Train on the next batch, with the clock running."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * learning_curve(self.progress, self.recipe.warmup)
        inputs, labels = self._batch()
        rng = random.Random(f"{self.recipe.seed} {self.steps}")
        space = self.model.space
        scores = self._scores(space.largest, inputs)
        loss = functional.cross_entropy(scores, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        teacher = scores.detach().softmax(1)  # [N, classes]
        losses = [loss.item()]
        for control in self.recipe.students(space, rng):
            loss = functional.cross_entropy(self._scores(control, inputs), teacher)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.seconds += time.perf_counter() - began
        return Step(self.steps, losses[0], losses[1] if losses[1:] else 0.0, sum(losses[2:]) / max(len(losses) - 2, 1))

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "steps": self.steps,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe; only how long to train may differ."""
        state = read_checkpoint(path)
        saved, asked = dict(state["recipe"]), asdict(self.recipe)
        different = sorted(k for k in asked if k not in ("epochs", "seconds") and saved.get(k) != asked[k])
        if different:
            raise DataError(f"{path} was trained with another {', '.join(different)}: start without --resume")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.seconds = state["steps"], state["seconds"]

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The inputs [N, ...] and labels [N] of the current step."""
        epoch, place = divmod(self.steps, len(self.train) // self.recipe.batch)
        if self._order[0] != epoch:
            shuffle = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            self._order = (epoch, self.train.order(self.recipe.batch, shuffle))
        rows = self._order[1][place * self.recipe.batch : (place + 1) * self.recipe.batch]
        draws = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + 500_009 + self.steps)
        return self.train.batch(rows, draws)

    def _scores(self, control: Control, inputs: Tensor) -> Tensor:
        """inputs: [N, ...] -> scores of a subnet [N, classes] float32."""
        apply(self.model, control)
        # The fused attention's backward pass takes several times as long on a CPU as that of its plain form.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            scores: Tensor = self.model(inputs)
        return scores.float()


def learning_curve(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise during `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `Trainer.save` wrote; tensors and plain values only, nothing is unpickled into objects.

    Raises: DataError when the file is missing or no checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"no checkpoint at {path}") from error
    except Exception as error:  # torch documents no type for a damaged file
        raise DataError(f"{path} is no readable checkpoint: {error}") from error
    return state


def fit(trainer: Trainer, checkpoint: Path, save_every: float, report: Callable[[Step], None]) -> None:
    """Train to the end of the recipe, with a checkpoint every `save_every` seconds of training and at the end."""
    saved = trainer.seconds
    while trainer.progress < 1.0:
        report(trainer.step())
        if trainer.seconds - saved >= save_every:
            trainer.save(checkpoint)
            saved = trainer.seconds
    trainer.save(checkpoint)
