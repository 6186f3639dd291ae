"""Log-probabilities, advantages and settings that losses are compared on, and what TRL gives for them.

The figures are those of TRL 1.16.0's own ``GRPOTrainer._compute_loss`` and ``RLOOTrainer._compute_loss``, and of its
advantage formulas; ``test_trl.py`` computes them again where TRL is installed.
"""

import torch

from longtake.train.losses import Objective

OLD = torch.tensor(
    [[-1.6, -0.3, -2.9, -0.7, -1.1], [-0.2, -2.2, 0, 0, 0], [-0.9, -1.4, -0.1, -2.5, 0], [0, 0, 0, 0, 0.0]]
)
NEW = torch.tensor(
    [[-1.1, -0.35, -2.6, -1.2, -1.1], [-0.5, -1.9, 0, 0, 0], [-0.8, -1.8, -0.15, -2.1, 0], [0, 0, 0, 0, 0.0]]
)
REFERENCE = torch.tensor(
    [[-1.5, -0.2, -2.7, -0.9, -1.3], [-0.3, -2.0, 0, 0, 0], [-1.2, -1.5, -0.2, -2.2, 0], [0, 0, 0, 0, 0.0]]
)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
ADVANTAGES = torch.tensor([1.2, -0.7, 0.3, -0.8])
LONGEST = 5

OBJECTIVES = {
    "grpo": Objective(),
    "grpo and kl": Objective(kl=0.04),
    "dr_grpo": Objective(average="constant"),
    "dapo": Objective(average="token", clip_high=0.28),
    "gspo": Objective(ratio="sequence", clip_low=3e-4, clip_high=4e-4),
    "cispo": Objective(surrogate="weight", clip_high=0.1, average="token"),
    "rloo": Objective(ratio="product"),
}

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 3.0, 1.0]])
PARTS = torch.tensor([[[1.0, 0.2], [0.0, 0.9], [0.0, 0.4], [1.0, 0.4]], [[0, 0.5], [0, 0.1], [1, 0.7], [0, 0.3]]])
WEIGHTS = torch.tensor([1.0, 0.5])
