"""Writes adaptive.npz: an adaptive input under an adaptive softmax, computed by PyTorch.

    python tests/golden/make_adaptive.py          (needs the extra `torch`)

Plain functions over matrices in the [out, in] layout of PyTorch, in float64, written as float32.
Loss of `tied` and `untied`: the sum of -log p over the targets but padding. The arrays:

    batch/ids, batch/target [B, T]      target has padding (id 1) at the end of a row
    batch/mix [B, T, D]                 x = tanh(adaptive input) * mix stands for the layers
    weights/NAME                        input.table_b, input.projection_b, and what is not tied:
                                        softmax.clusters, softmax.head, softmax.projection_b,
                                        softmax.table_b
    CASE/log_probs [B, T, V]
    CASE/nll [B, T]                     meaningless at padding
    CASE/grad/NAME                      of the loss; row 1 of input.table_0 has nothing from the
                                        input side
"""

from pathlib import Path

import numpy as np
import torch

PAD = 1
V, D, CUTOFFS, FACTOR, B, T = 61, 13, (11, 29), 2, 3, 17
BOUNDS = (0, *CUTOFFS, V)
WIDTHS = [D // FACTOR**b for b in range(3)]
CASES = {"tied": (True, True), "tied_tables": (True, False), "untied": (False, False)}


def adaptive_input(weights, ids):
    flat = ids.flatten()
    width = weights["input.projection_0"].shape[0]
    embedded = torch.zeros(len(flat), width, dtype=torch.float64)
    for b in range(3):
        rows = torch.nonzero((flat >= BOUNDS[b]) & (flat < BOUNDS[b + 1]))[:, 0]
        looked_up = torch.nn.functional.embedding(
            flat[rows] - BOUNDS[b],
            weights[f"input.table_{b}"],
            padding_idx=PAD if b == 0 else None,
        )
        embedded = embedded.index_copy(0, rows, looked_up @ weights[f"input.projection_{b}"].T)
    return embedded.unflatten(0, ids.shape)


def log_probs(weights, x, tie_tables, tie_projections):
    if tie_tables:
        head = torch.cat([weights["input.table_0"], weights["softmax.clusters"]])
    else:
        head = weights["softmax.head"]
    head = torch.log_softmax(x @ head.T, -1)
    parts = [head[..., : BOUNDS[1]]]
    for b in (1, 2):
        table = weights[f"{'input' if tie_tables else 'softmax'}.table_{b}"]
        if tie_projections:
            hidden = x @ weights[f"input.projection_{b}"]
        else:
            hidden = x @ weights[f"softmax.projection_{b}"].T
        cluster = head[..., BOUNDS[1] + b - 1, None]
        parts.append(cluster + torch.log_softmax(hidden @ table.T, -1))
    return torch.cat(parts, -1)


def main():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (values * shape[-1] ** -0.5).float().double()  # what float32 can hold

    weights = {}
    for b in range(3):
        size = BOUNDS[b + 1] - BOUNDS[b]
        weights[f"input.table_{b}"] = draw(size, WIDTHS[b])
        weights[f"input.projection_{b}"] = draw(D, WIDTHS[b])
        if b:
            weights[f"softmax.table_{b}"] = draw(size, WIDTHS[b])
            weights[f"softmax.projection_{b}"] = draw(WIDTHS[b], D)
    weights["softmax.clusters"] = draw(2, D)
    weights["softmax.head"] = draw(BOUNDS[1] + 2, D)
    ids = torch.randint(V, (B, T), generator=generator)
    ids[0, :4] = torch.tensor([PAD, BOUNDS[1] + PAD, BOUNDS[2] + PAD, BOUNDS[1]])
    target = torch.randint(2, V, (B, T), generator=generator)
    target[1, :4] = torch.tensor([BOUNDS[1] + PAD, BOUNDS[2] + PAD, V - 1, BOUNDS[2]])
    target[0, -2:] = target[2, -5:] = PAD
    mix = draw(B, T, D) * 6
    arrays = {"batch/ids": ids, "batch/target": target, "batch/mix": mix}
    arrays |= {f"weights/{name}": weight for name, weight in weights.items()}
    for case, tied in CASES.items():
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        x = torch.tanh(adaptive_input(leaves, ids)) * mix
        found = log_probs(leaves, x, *tied)
        nll = -found.gather(-1, target[..., None])[..., 0]
        grads = torch.autograd.grad(
            nll[target != PAD].sum(), list(leaves.values()), allow_unused=True
        )
        arrays |= {f"{case}/log_probs": found.detach(), f"{case}/nll": nll.detach()}
        for name, grad in zip(leaves, grads):
            if grad is not None:
                arrays[f"{case}/grad/{name}"] = grad
    arrays = {name: array.numpy() for name, array in arrays.items()}
    for name, array in arrays.items():
        arrays[name] = array.astype(np.int32 if array.dtype == np.int64 else np.float32)
    np.savez_compressed(Path(__file__).with_name("adaptive.npz"), **arrays)


if __name__ == "__main__":
    main()
