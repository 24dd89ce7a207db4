"""Writes optimizer.npz: Adam, clipping and cosine restarts as PyTorch itself computes them.

    python tests/golden/make_optimizer.py          (needs the extra `torch`)

The optimizer tested adds epsilon before the bias of the second moment is corrected, `torch.optim`
afterwards: with c = 1 - beta2**t,  sqrt(c) m / (sqrt(v) + epsilon) is torch's step with its own
epsilon set to epsilon / sqrt(c) in step t. All of it runs in float64.
"""

from pathlib import Path

import numpy as np
import torch

BETA1, BETA2, EPSILON, DECAY = 0.9, 0.98, 1e-3, 0.03
STEPS, SHAPES = 13, {"w": (5, 3), "b": (7,)}


def adam(generator: torch.Generator) -> dict:
    weights = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in SHAPES.items()
    }
    out = {f"adam/init/{name}": weight.detach().clone() for name, weight in weights.items()}
    rates = torch.rand(STEPS, generator=generator, dtype=torch.float64) * 0.1
    grads = {
        name: torch.randn((STEPS, *shape), generator=generator, dtype=torch.float64) * 0.01
        for name, shape in SHAPES.items()
    }
    optimizer = torch.optim.AdamW(weights.values(), betas=(BETA1, BETA2), weight_decay=DECAY)
    path = {name: [] for name in SHAPES}
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rates[step].item()
        optimizer.param_groups[0]["eps"] = EPSILON / (1 - BETA2 ** (step + 1)) ** 0.5
        for name, weight in weights.items():
            weight.grad = grads[name][step].clone()
        optimizer.step()
        for name, weight in weights.items():
            path[name].append(weight.detach().clone())
    out |= {f"adam/params/{name}": torch.stack(steps) for name, steps in path.items()}
    out |= {f"adam/grads/{name}": grad for name, grad in grads.items()}
    return out | {"adam/rates": rates}


def clip(generator: torch.Generator) -> dict:
    grads = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }
    out = {f"clip/grads/{name}": grad for name, grad in grads.items()}
    for max_norm in (0.5, 100.0):
        weights = [torch.nn.Parameter(torch.zeros(shape).double()) for shape in SHAPES.values()]
        for weight, grad in zip(weights, grads.values()):
            weight.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(weights, max_norm)
        out |= {f"clip/{max_norm}/{name}": w.grad for name, w in zip(SHAPES, weights)}
    return out | {"clip/norm": norm}


def cosine(peak=0.3, low=0.002, length=11) -> dict:
    """No warm-up; periods of the same length, and of doubling length."""
    out = {}
    for mult in (1, 2):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=length, T_mult=mult, eta_min=low
        )
        rates = []
        for _ in range(100):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        out[f"cosine/{mult}"] = torch.tensor(rates, dtype=torch.float64)
    return out


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(20)
    arrays = adam(generator) | clip(generator) | cosine()
    np.savez_compressed(
        Path(__file__).with_name("optimizer.npz"), **{k: v.numpy() for k, v in arrays.items()}
    )
