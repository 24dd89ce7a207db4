"""Writes seq2seq_post.npz and seq2seq_pre.npz: small encoder-decoders, computed by PyTorch.

    python tests/golden/make_seq2seq.py          (needs the extra `torch`)

Each network is a dictionary of weights under the names and in the [out, in] layout of the reference
implementation's checkpoints, and plain functions over it. Weights are drawn, not trained. All is
computed in float64 and written as float32. The arrays:

    weights/NAME                        a tied matrix stands once, under its first name
    batch/src_tokens [B, S]             source and </s>, padded on the left as the reference does
    batch/prev_output_tokens [B, T]     </s> and target, padded on the right
    batch/target [B, T]                 target and </s>, padded on the right
    p0/...                              every layer runs
    p1/... p2/...                       some layers run, no layer runs; one left out is the identity
    pK/encoder_keep, pK/decoder_keep    bool, which layers run
    pK/encoder_out [B, S, D]            meaningless at padding
    pK/logits [B, T, V]                 meaningless at padding
    pK/loss, pK/nll                     sums over the target tokens, in nats; loss is label-smoothed
    pK/grad/NAME                        of the loss; absent where the weight plays no part
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import embedding, gelu, layer_norm, linear, log_softmax, relu

PAD, EOS = 1, 2
SMOOTHING = 0.1
PATTERNS = [((1, 1, 1), (1, 1)), ((1, 0, 1), (0, 1)), ((0, 0, 0), (0, 0))]
CASES = {
    "seq2seq_post": {
        "heads": 2,
        "pre_norm": False,
        "learned_positions": False,
        "activation": relu,
        "source_vocab": 19,
        "target_vocab": 19,
    },
    "seq2seq_pre": {
        "heads": 2,
        "pre_norm": True,
        "learned_positions": True,
        "activation": gelu,
        "source_vocab": 17,
        "target_vocab": 19,
    },
}
DIM, FFN, MAX_LENGTH = 10, 13, 11


def position_ids(tokens):
    """Real tokens of a row count from PAD + 1; padding has PAD."""
    real = tokens != PAD
    return torch.where(real, real.cumsum(1) + PAD, PAD)


def sinusoids(ids, dim):
    """Sines of every frequency, then cosines; the frequencies fall from 1 to 1/10000."""
    half = dim // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
    angle = ids[..., None] * frequency
    table = torch.cat([angle.sin(), angle.cos()], -1)
    return table * (ids != PAD)[..., None]


def embed(weights, side, tokens, case):
    table = weights[f"{side}.embed_tokens.weight"]
    ids = position_ids(tokens)
    if case["learned_positions"]:
        positions = embedding(ids, weights[f"{side}.embed_positions.weight"])
    else:
        positions = sinusoids(ids, table.shape[1])
    return table.shape[1] ** 0.5 * embedding(tokens, table) + positions


def project(weights, name, x):
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def normalise(weights, name, x):
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def attend(weights, name, query, memory, visible, heads):
    """Scaled dot-product attention; `visible` [B, 1 or T, S] is True where a query may look."""

    def split(projection, x):
        return (
            project(weights, f"{name}.{projection}", x).unflatten(-1, (heads, -1)).transpose(1, 2)
        )

    q, k, v = split("q_proj", query), split("k_proj", memory), split("v_proj", memory)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    share = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return project(weights, f"{name}.out_proj", (share @ v).transpose(1, 2).flatten(-2))


def sublayer(weights, norm_name, x, f, case):
    if case["pre_norm"]:
        return x + f(normalise(weights, norm_name, x))
    return normalise(weights, norm_name, x + f(x))


def feed_forward(weights, layer, x, case):
    def f(x):
        hidden = case["activation"](project(weights, f"{layer}.fc1", x))
        return project(weights, f"{layer}.fc2", hidden)

    return sublayer(weights, f"{layer}.final_layer_norm", x, f, case)


def encode(weights, source, keep, case):
    visible = (source != PAD)[:, None]
    x = embed(weights, "encoder", source, case)
    for n, runs in enumerate(keep):
        if runs:
            at = f"encoder.layers.{n}"

            def self_attention(x, at=at):
                return attend(weights, f"{at}.self_attn", x, x, visible, case["heads"])

            x = sublayer(weights, f"{at}.self_attn_layer_norm", x, self_attention, case)
            x = feed_forward(weights, at, x, case)
    return normalise(weights, "encoder.layer_norm", x) if case["pre_norm"] else x


def decode(weights, target_input, source, memory, keep, case):
    length = target_input.shape[1]
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    visible = (source != PAD)[:, None]
    x = embed(weights, "decoder", target_input, case)
    for n, runs in enumerate(keep):
        if runs:
            at = f"decoder.layers.{n}"

            def self_attention(x, at=at):
                return attend(weights, f"{at}.self_attn", x, x, causal, case["heads"])

            def cross_attention(x, at=at):
                return attend(weights, f"{at}.encoder_attn", x, memory, visible, case["heads"])

            x = sublayer(weights, f"{at}.self_attn_layer_norm", x, self_attention, case)
            x = sublayer(weights, f"{at}.encoder_attn_layer_norm", x, cross_attention, case)
            x = feed_forward(weights, at, x, case)
    if case["pre_norm"]:
        x = normalise(weights, "decoder.layer_norm", x)
    return x @ weights["decoder.embed_tokens.weight"].T


def losses(logits, target):
    """(label-smoothed, plain): the smoothed target keeps 1 - s, and s / V goes to all V symbols."""
    surprise = -log_softmax(logits, -1)
    real = target != PAD
    nll = surprise.gather(-1, target[..., None])[..., 0][real].sum()
    return (1 - SMOOTHING) * nll + SMOOTHING * surprise.mean(-1)[real].sum(), nll


def run(weights, batch, encoder_keep, decoder_keep, case):
    """Outputs, losses and gradients of one forward and backward pass."""
    leaves = {id(weight): weight.clone().requires_grad_() for weight in weights.values()}
    tied = {name: leaves[id(weight)] for name, weight in weights.items()}
    memory = encode(tied, batch["src_tokens"], encoder_keep, case)
    logits = decode(
        tied, batch["prev_output_tokens"], batch["src_tokens"], memory, decoder_keep, case
    )
    loss, nll = losses(logits, batch["target"])
    names = distinct(weights)
    grads = torch.autograd.grad(loss, [tied[name] for name in names], allow_unused=True)
    return {
        "encoder_keep": torch.tensor(encoder_keep, dtype=torch.bool),
        "decoder_keep": torch.tensor(decoder_keep, dtype=torch.bool),
        "encoder_out": memory.detach(),
        "logits": logits.detach(),
        "loss": loss.detach(),
        "nll": nll.detach(),
    } | {f"grad/{name}": grad for name, grad in zip(names, grads) if grad is not None}


def distinct(weights):
    """Names of the weights, the first one only where several name the same tensor."""
    first = {}
    for name, weight in weights.items():
        first.setdefault(id(weight), name)
    return list(first.values())


def draw_weights(case, generator):
    """Every weight random, norms and biases too, so that none can be left out unnoticed."""
    weights = {}

    def draw(name, *shape, around=0.0):
        scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        values = around + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = values.float().double()  # what float32 can hold

    def draw_linear(name, rows, columns):
        draw(f"{name}.weight", rows, columns)
        draw(f"{name}.bias", rows)

    def draw_norm(name):
        draw(f"{name}.weight", DIM, around=1.0)
        draw(f"{name}.bias", DIM)

    attentions = {"encoder": ["self_attn"], "decoder": ["self_attn", "encoder_attn"]}
    for side, keep in zip(attentions, PATTERNS[0]):
        vocab = case["source_vocab" if side == "encoder" else "target_vocab"]
        draw(f"{side}.embed_tokens.weight", vocab, DIM)
        if case["learned_positions"]:
            draw(f"{side}.embed_positions.weight", MAX_LENGTH + PAD + 1, DIM)
        for n in range(len(keep)):
            at = f"{side}.layers.{n}"
            for attention in attentions[side]:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    draw_linear(f"{at}.{attention}.{projection}", DIM, DIM)
                draw_norm(f"{at}.{attention}_layer_norm")
            draw_linear(f"{at}.fc1", FFN, DIM)
            draw_linear(f"{at}.fc2", DIM, FFN)
            draw_norm(f"{at}.final_layer_norm")
        if case["pre_norm"]:
            draw_norm(f"{side}.layer_norm")
    if not case["learned_positions"]:  # the case that shares all embeddings
        weights["decoder.embed_tokens.weight"] = weights["encoder.embed_tokens.weight"]
    return weights


def draw_batch(case, generator):
    """Three sentence pairs of different lengths."""

    def tokens(length, vocab):
        return torch.randint(4, vocab, (length,), generator=generator)

    def pad(rows, left=False):
        width = max(len(row) for row in rows)
        fill = [torch.full((width - len(row),), PAD) for row in rows]
        return torch.stack(
            [torch.cat([gap, row] if left else [row, gap]) for row, gap in zip(rows, fill)]
        )

    eos = torch.tensor([EOS])
    sources = [tokens(length, case["source_vocab"]) for length in (6, 3, 4)]
    targets = [tokens(length, case["target_vocab"]) for length in (2, 4, 1)]
    return {
        "src_tokens": pad([torch.cat([row, eos]) for row in sources], left=True),
        "prev_output_tokens": pad([torch.cat([eos, row]) for row in targets]),
        "target": pad([torch.cat([row, eos]) for row in targets]),
    }


def main():
    for seed, (name, case) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        weights, batch = draw_weights(case, generator), draw_batch(case, generator)
        arrays = {f"weights/{key}": weights[key] for key in distinct(weights)}
        arrays |= {f"batch/{key}": tokens for key, tokens in batch.items()}
        for k, (encoder_keep, decoder_keep) in enumerate(PATTERNS):
            result = run(weights, batch, encoder_keep, decoder_keep, case)
            arrays |= {f"p{k}/{key}": array for key, array in result.items()}
        numpy_arrays = {
            key: array.float().numpy() if array.is_floating_point() else array.numpy()
            for key, array in arrays.items()
        }
        np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), **numpy_arrays)


if __name__ == "__main__":
    main()
