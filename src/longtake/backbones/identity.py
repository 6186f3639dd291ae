"""What a model is called in provenance."""

from __future__ import annotations

import hashlib

import torch

HASHED_VALUES = 64  # of each weight


def weights_hash(model: torch.nn.Module) -> str:
    """12 hexadecimal digits over the names, shapes and evenly spaced values of all weights.

    Values count as bfloat16, so that one checkpoint has one name whichever floating-point type it is loaded in.
    """
    digest, values = hashlib.sha256(), []
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // HASHED_VALUES)
        values.append(flat[::step][:HASHED_VALUES].to(torch.bfloat16))
    digest.update(torch.cat(values).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
