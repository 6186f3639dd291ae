"""DeepSpeed's ZeRO-2: gradients and AdamW's state split over the processes, each of which holds all weights.

Paper: ZeRO, arXiv 1910.02054, second stage; ZeRO-Offload, arXiv 2101.06840. The engine is made here and not by
accelerate, which leaves processes without an accelerator apart, each alone, and would train bfloat16 weights. Here
weights and optimiser are float32 and bf16 computes under autocast, as everywhere in this package.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from longtake.types import LongtakeError

MOMENTS = ("exp_avg", "exp_avg_sq")


def check() -> None:
    """Raises LongtakeError where DeepSpeed is not installed, or torchrun did not start this process."""
    if find_spec("deepspeed") is None:
        raise LongtakeError("zero is true, but DeepSpeed is not installed; pip install deepspeed, or set shard=true")
    if not torch.distributed.is_initialized():
        raise LongtakeError("zero needs torchrun, for one process too; torchrun --nproc-per-node N -m longtake.cli")


def spread(module: nn.Module, optimiser: torch.optim.Optimizer, *, clip: float, bf16: bool, offload: bool) -> nn.Module:
    """Put DeepSpeed's engine around a module, on this process's device; ``.optimizer`` is its own around ``optimiser``.

    clip: the largest norm of a step's gradient. bf16: it computes under autocast. offload: AdamW works in the
    machine's memory, where a step's gradients wait too.
    """
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,  # required; rows are counted by ``Run``, whose losses are sums
        "gradient_clipping": clip,
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu" if offload else "none"}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW, which has the same state everywhere
        # no module's gradients are summed up over processes in bfloat16
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }
    engine: Any
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, config=config)
    for group in engine.optimizer.param_groups:
        (flat,) = group["params"]  # this process's share
        empty = {moment: torch.zeros_like(flat) for moment in MOMENTS}
        engine.optimizer.state[flat] = {"step": torch.zeros((), device=flat.device)} | empty
    engine.optimizer._lazy_init_hp_params_optimizer_state()  # by parameter; the first step finds the first group's only
    return cast(nn.Module, engine)


def learn(engine: Any, loss: Tensor, *, last: bool) -> Tensor:
    """Add a loss's gradient, a mean over the processes; after the last of a step's, clip and step.

    Returns the norm of the step's gradient before clipping, 0 before the last.
    """
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss, scale_wrt_gas=False)
    if not last:
        return torch.zeros(())
    engine.step()
    return torch.as_tensor(engine.get_global_grad_norm())


def optimiser_state(engine: Any) -> dict[str, Any]:
    """AdamW's whole state by names, on the CPU, as one process has it; the first process's alone is filled.

    Every process must call it.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    state: dict[str, dict[str, Tensor]] = {}
    groups = []
    for group, parameters in zip(engine.optimizer.param_groups, engine.optimizer.bit16_groups, strict=True):
        (flat,) = group["params"]
        for parameter in parameters:
            # a count of its own for each, as one that all share would be counted up by each
            kept = state.setdefault(names[parameter], {"step": engine.optimizer.state[flat]["step"].cpu().clone()})
            for moment in MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, moment)
                if torch.distributed.get_rank() == 0:
                    kept[moment] = whole.cpu()
        groups.append(group | {"fused": None, "params": [names[parameter] for parameter in parameters]})
    return {"state": state, "param_groups": groups}


def set_weights_and_state(engine: Any, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put trained weights and AdamW's state by names into this process's share; of any number of processes."""
    from deepspeed.utils import safe_set_full_optimizer_state

    engine.module.load_state_dict(weights, strict=False)
    engine.optimizer.refresh_fp32_params()  # its own copy of this process's share of the weights
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    for group, parameters in zip(engine.optimizer.param_groups, engine.optimizer.bit16_groups, strict=True):
        (flat,) = group["params"]
        engine.optimizer.state[flat]["step"].fill_(float(state["state"][names[parameters[0]]]["step"]))
    for parameter, name in names.items():
        for moment in MOMENTS if name in state["state"] else ():
            safe_set_full_optimizer_state(parameter, state["state"][name][moment], moment)
