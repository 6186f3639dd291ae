"""Trainable classifiers on frozen features: a linear one and a two-layer MLP, fitted to the end and not by epochs.

Features have far more dimensions than there are examples, and arms that are compared differ in how many. So they are
first turned into the span of the training examples, at most one dimension an example: a classifier whose weights are
penalised by their squares has its first layer in that span anyway, so nothing is lost, and all arms have equally
large classifiers. All of this is ours; the paper names a two-layer MLP.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["linear", "mlp"]

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
HIDDEN = 64
ITERATIONS = 60


def classified(
    kind: Kind, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, seed: int = 0
) -> Tensor:
    """Which test examples a classifier fitted on the training examples gets right, bool ``(examples,)``.

    train, test: features ``(examples, dim)`` and labels int64 ``(examples,)``. The penalty is the one with which the
    last fifth of the training examples are best told from the rest; then all of them are fitted. seed: the MLP's start.
    """
    known, seen = into_span(train[0], test[0])
    cut = len(known) - len(known) // 5
    part, left_out = into_span(train[0][:cut], train[0][cut:])
    tried = {}
    for penalty in PENALTIES:
        probe = fit(new_classifier(kind, part.shape[1], classes, seed), part, train[1][:cut], penalty)
        tried[penalty] = accuracy(probe, left_out, train[1][cut:])
    best = max(tried, key=lambda penalty: (tried[penalty], penalty))
    probe = fit(new_classifier(kind, known.shape[1], classes, seed), known, train[1], best)
    return hits(probe, seen, test[1])


def into_span(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets of examples standardised by the training ones' means and deviations, in coordinates of their span.

    Float32 ``(examples, dims)``, dims below the number of training examples; these have a mean square norm of 1.
    """
    mean, deviation = train.mean(0), train.std(0)
    deviation = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.inf)  # constants say nothing
    known, seen = (train - mean) / deviation, (test - mean) / deviation
    values, vectors = torch.linalg.eigh((known @ known.T).double())
    real = values > 1e-6 * values[-1]
    axes = (vectors[:, real] * values[real].rsqrt()).float()  # known.T @ axes is orthonormal
    size = values.sum().div(len(train)).sqrt().float()
    return known @ known.T @ axes / size, seen @ known.T @ axes / size


def new_classifier(kind: Kind, inputs: int, classes: int, seed: int) -> nn.Module:
    """Linear from zero, or a hidden layer with a seeded start of unit size for inputs of unit norm."""
    if kind == "linear":
        linear = nn.Linear(inputs, classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear
    generator = torch.Generator().manual_seed(seed)
    first, second = nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN, classes)
    nn.init.normal_(first.weight, generator=generator)
    nn.init.normal_(second.weight, std=HIDDEN**-0.5, generator=generator)
    for layer in (first, second):
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.GELU(), second)


def fit(probe: nn.Module, features: Tensor, labels: Tensor, penalty: float) -> nn.Module:
    """The least mean cross-entropy plus ``penalty`` times half the squares of all matrices, by L-BFGS."""
    probe.to(features.device)
    matrices = [p for p in probe.parameters() if p.ndim == 2]
    optimiser = torch.optim.LBFGS(probe.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        squares = torch.stack([matrix.square().sum() for matrix in matrices]).sum()
        loss = F.cross_entropy(probe(features), labels) + penalty / 2 * squares
        loss.backward()
        return loss

    optimiser.step(closure)
    return probe


def accuracy(probe: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is at their label."""
    return float(hits(probe, features, labels).float().mean())


@torch.no_grad()
def hits(probe: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Which rows have their largest logit at their label, bool ``(rows,)``."""
    found: Tensor = probe(features).argmax(1) == labels
    return found
