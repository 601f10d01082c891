"""PyTorch's side of train_step: the same model written in several ways, of which the fastest here goes into the rounds.

    python -m benchmarks.peers.torch_step FOLDER

Rows get the gradient of the summed loss, as ours do; Adam's step does not change with the gradient's scale.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.rounds import serve
from benchmarks.step_data import (
    ADAGRAD_EPSILON,
    ADAM_LEARNING_RATE,
    HIDDEN,
    INITIAL_ACCUMULATOR,
    INITIAL_STD,
    ROW_LEARNING_RATE,
    StepData,
    Work,
)

TRIALS = 3
TRIAL_STEPS = 8
"""Each way is tried again and again, the others in between: on a busy machine one moment says little."""
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def tower(work: Work) -> nn.Sequential:
    """The fully connected layers, initialised as ours."""
    widths = [work.slots * work.dim, *HIDDEN, 1]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = nn.Linear(fan_in, fan_out)
        nn.init.zeros_(layer.bias)
        if fan_out > 1:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layers += [layer, nn.ReLU()]
        else:
            nn.init.xavier_uniform_(layer.weight)
            layers.append(layer)
    return nn.Sequential(*layers)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="sum")


def one_table(work: Work, weight: torch.Tensor) -> Step:
    """All rows in one nn.Embedding with sparse gradients, torch.optim.Adagrad."""
    embedding = nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)

    def embed(rows: torch.Tensor) -> torch.Tensor:
        return embedding(rows).flatten(1)

    return _sparse_step(work, list(embedding.parameters()), embed)


def table_a_slot(work: Work, weight: torch.Tensor) -> Step:
    """An nn.EmbeddingBag a slot with sparse gradients, torch.optim.Adagrad."""
    bags = [
        nn.EmbeddingBag.from_pretrained(
            weight[slot * work.share : (slot + 1) * work.share], freeze=False, sparse=True, mode="sum"
        )
        for slot in range(work.slots)
    ]

    def embed(rows: torch.Tensor) -> torch.Tensor:
        local = (rows - torch.arange(work.slots) * work.share).T.contiguous()
        return torch.cat([bag(ids[:, None]) for bag, ids in zip(bags, local)], dim=1)

    return _sparse_step(work, [p for bag in bags for p in bag.parameters()], embed)


def _sparse_step(
    work: Work, tables: list[nn.Parameter], embed: Callable[[torch.Tensor], torch.Tensor]
) -> Step:
    dense = tower(work)
    adam = torch.optim.Adam(dense.parameters(), lr=ADAM_LEARNING_RATE, fused=True)
    adagrad = torch.optim.Adagrad(
        tables,
        lr=ROW_LEARNING_RATE,
        initial_accumulator_value=INITIAL_ACCUMULATOR,
        eps=ADAGRAD_EPSILON,
    )

    def step(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        adagrad.zero_grad(set_to_none=True)
        loss = loss_of(dense(embed(rows)), labels)
        loss.backward()
        adam.step()
        adagrad.step()
        return loss.detach()

    return step


def by_hand(work: Work, weight: torch.Tensor) -> Step:
    """One table outside autograd: distinct rows are gathered, learned by Adagrad written out, and put back."""
    dense = tower(work)
    adam = torch.optim.Adam(dense.parameters(), lr=ADAM_LEARNING_RATE, fused=True)
    squares = torch.full_like(weight, INITIAL_ACCUMULATOR)

    def step(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        distinct, inverse = torch.unique(rows, return_inverse=True)
        touched = weight.index_select(0, distinct).requires_grad_()
        loss = loss_of(dense(functional.embedding(inverse, touched).flatten(1)), labels)
        loss.backward()
        adam.step()
        gradient = touched.grad
        assert gradient is not None
        with torch.no_grad():
            sums = squares.index_select(0, distinct).addcmul_(gradient, gradient)
            squares.index_copy_(0, distinct, sums)
            touched.addcdiv_(gradient, sums.sqrt_().add_(ADAGRAD_EPSILON), value=-ROW_LEARNING_RATE)
            weight.index_copy_(0, distinct, touched)
        return loss.detach()

    return step


VARIANTS = {"one_table": one_table, "table_a_slot": table_a_slot, "by_hand": by_hand}


class TorchSteps:
    """Tries each variant on the first steps, keeps the fastest, and learns rounds with it."""

    def __init__(self, data: StepData) -> None:
        torch.manual_seed(1)
        self._rows = [torch.from_numpy(np.array(rows)) for rows in data.rows]
        self._labels = [torch.from_numpy(np.array(labels)) for labels in data.labels]
        self._batch = data.work.batch
        weight = torch.empty(data.work.share * data.work.slots, data.work.dim)
        self.trials = dict.fromkeys(VARIANTS, 0)
        for name in list(VARIANTS) * TRIALS:
            self.trials[name] = max(self.trials[name], self._trial(data.work, weight, name))
        self.chosen = max(self.trials, key=lambda name: self.trials[name])
        self._step = self._make(data.work, weight, self.chosen)

    def learn(self, first: int, end: int) -> dict[str, Any]:
        """Takes steps; see `serve`."""
        losses = [self._step(self._rows[i], self._labels[i]) for i in range(first, end)]
        return {"loss": float(torch.stack(losses).mean()) / self._batch}

    def _make(self, work: Work, weight: torch.Tensor, name: str) -> Step:
        nn.init.normal_(weight, std=INITIAL_STD)
        return VARIANTS[name](work, weight)

    def _trial(self, work: Work, weight: torch.Tensor, name: str) -> float:
        """Samples a second over the fastest of some steps."""
        step, seconds = self._make(work, weight, name), []
        for i in range(min(TRIAL_STEPS, len(self._rows))):
            begin = time.perf_counter()
            step(self._rows[i], self._labels[i])
            seconds.append(time.perf_counter() - begin)
        return round(self._batch / min(seconds))


def main() -> None:
    data = StepData(Path(sys.argv[1]))
    torch.set_num_threads(data.work.threads)
    steps = TorchSteps(data)
    about = {"version": torch.__version__, "trials_samples_per_s": steps.trials, "chosen": steps.chosen}
    serve(steps.learn, about | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
