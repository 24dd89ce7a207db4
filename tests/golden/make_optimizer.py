"""Writes optimizer.npz: Adam, NAG, clipping, cosine restarts as PyTorch itself computes them.

    python tests/golden/make_optimizer.py          (needs the extra `torch`)

The optimizer tested adds epsilon before the bias of the second moment is corrected, `torch.optim`
afterwards: with c = 1 - beta2**t,  sqrt(c) m / (sqrt(v) + epsilon) is torch's step with its own
epsilon set to epsilon / sqrt(c) in step t. `torch.optim.SGD` takes the learning rate into a step
last, the NAG tested first, into its velocity: both walk the same path. Its decay is added here, as
torch's own is no more than a part of the gradient. All of it runs in float64.
"""

from pathlib import Path

import numpy as np
import torch

BETA1, BETA2, EPSILON, DECAY = 0.9, 0.98, 1e-3, 0.03
MOMENTUM = 0.97
STEPS, SHAPES = 13, {"w": (5, 3), "b": (7,)}


def inputs(generator: torch.Generator, rate: float, grad: float) -> tuple[dict, dict, torch.Tensor]:
    """Parameters, the gradients of every step, its learning rate below `rate`."""
    weights = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in SHAPES.items()
    }
    rates = torch.rand(STEPS, generator=generator, dtype=torch.float64) * rate
    grads = {
        name: torch.randn((STEPS, *shape), generator=generator, dtype=torch.float64) * grad
        for name, shape in SHAPES.items()
    }
    return weights, grads, rates


def walk(run: str, weights: dict, grads: dict, rates: torch.Tensor, step_of) -> dict:
    """The arrays of a run: where it begins, what is fed, the parameters after every step."""
    out = {f"{run}/init/{name}": weight.detach().clone() for name, weight in weights.items()}
    path = {name: [] for name in SHAPES}
    for step in range(STEPS):
        for name, weight in weights.items():
            weight.grad = grads[name][step].clone()
        step_of(step, rates[step].item())
        for name, weight in weights.items():
            path[name].append(weight.detach().clone())
    out |= {f"{run}/params/{name}": torch.stack(steps) for name, steps in path.items()}
    out |= {f"{run}/grads/{name}": grad for name, grad in grads.items()}
    return out | {f"{run}/rates": rates}


def adam(generator: torch.Generator) -> dict:
    weights, grads, rates = inputs(generator, rate=0.1, grad=0.01)
    optimizer = torch.optim.AdamW(weights.values(), betas=(BETA1, BETA2), weight_decay=DECAY)

    def step_of(step, rate):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.param_groups[0]["eps"] = EPSILON / (1 - BETA2 ** (step + 1)) ** 0.5
        optimizer.step()

    return walk("adam", weights, grads, rates, step_of)


def nag(generator: torch.Generator) -> dict:
    """Also the velocity after the last step: torch's, times the rate and with the other sign."""
    weights, grads, rates = inputs(generator, rate=0.2, grad=1.0)
    optimizer = torch.optim.SGD(weights.values(), momentum=MOMENTUM, nesterov=True)

    def step_of(step, rate):
        optimizer.param_groups[0]["lr"] = rate
        for weight in weights.values():
            weight.data.mul_(1 - rate * DECAY)
        optimizer.step()

    out = walk("nag", weights, grads, rates, step_of)
    for name, weight in weights.items():
        out[f"nag/velocity/{name}"] = -rates[-1] * optimizer.state[weight]["momentum_buffer"]
    return out


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
    arrays = adam(generator) | clip(generator) | cosine() | nag(generator)
    np.savez_compressed(
        Path(__file__).with_name("optimizer.npz"), **{k: v.numpy() for k, v in arrays.items()}
    )
