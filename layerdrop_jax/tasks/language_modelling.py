"""Language modelling as a task: its data, its perplexity, and what a run makes of a prompt."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from layerdrop_jax.data import pipeline, streams, tokenizers
from layerdrop_jax.decoding.batching import padded_width
from layerdrop_jax.decoding.sampling import (
    continue_sequences,
    continue_with_draft,
    continue_with_exits,
)
from layerdrop_jax.models.cut import masks
from layerdrop_jax.models.params import decoding_network, model_graph
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.metrics import check_scored, perplexity
from layerdrop_jax.runs.run import Run
from layerdrop_jax.runs.settings import LanguageModelSettings
from layerdrop_jax.step import losses
from layerdrop_jax.step.devices import over_devices
from layerdrop_jax.step.flops import lm_flops
from layerdrop_jax.symbols import EOS, PAD, UNK
from layerdrop_jax.tasks.depths import score_depths
from layerdrop_jax.tasks.drafting import draft_mask, drafting, with_draft
from layerdrop_jax.tasks.leaving import leaving_step
from layerdrop_jax.tasks.task import Task
from layerdrop_jax.tasks.text_runs import perplexity_score, prepare_texts

NOTHING = "it has no text"
loss = losses.lm_loss


def prepare(settings, workdir):
    """Prepares the blocks of train and valid; fills a new folder once all of it works."""
    train = {"word": tokenizers.train_word_vocabulary, "bpe": tokenizers.train_text_bpe}
    rows, valid_rows = prepare_texts(
        settings,
        workdir,
        load=streams.load_texts,
        train_tokenizer=train[settings.data.tokenizer],
        make_blocks=streams.prepare_blocks,
        source_record=streams.source_record,
        check=lambda split, rows: check_scored(len(rows.tokens), split, NOTHING),
    )
    taken = streams.take_blocks(rows, settings.data.max_blocks)
    if len(taken) < len(rows):
        print(f"{len(taken):,} of {len(rows):,} blocks, {len(taken.tokens):,} tokens", flush=True)
    return taken, valid_rows


def row(settings) -> dict:
    """Makes the arrays of a block without a token."""
    return streams.empty_row(settings.data.length)


def fingerprint(rows) -> str:
    """Computes the SHA-256 of the training tokens: the iterator's position is a place in them."""
    return hashlib.sha256(np.ascontiguousarray(rows.tokens)).hexdigest()


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """Measures the perplexity of valid and test, and of valid at every depth.

    It is exp(-sum of log p / tokens) over all tokens, line ends and unknown words included; each is
    predicted once, from as much context as `streams.Windows` gives it. The depths keep the layers
    of `pruning.every_depth`, without fine-tuning.

    Returns:
      ``(scores, depths)``: a record for each split, whole, and one for each depth.
    """
    windows = run.settings.evaluate
    measure = make_measure(run)
    splits = {split: _windows(run, split) for split in ("valid", "test")}
    results, whole = [], {}
    for split, rows in splits.items():
        nats = whole[split] = measure(rows, description=f"perplexity of {split}")
        results.append(
            {
                "split": split,
                "perplexity": perplexity(nats),
                "nats": nats,
                "tokens": len(rows.tokens),
                "unknown": float(np.mean(rows.tokens == UNK)),
                "signature": (
                    f"base:e|eos:yes|unk:yes|break:{windows.break_mode}"
                    f"|window:{windows.length}|context:{windows.context}"
                ),
                "averaged": list(run.steps),
            }
        )

    def at(keep, description):
        return found(measure(splits["valid"], keep, description=description))

    def found(nats):
        return {"split": "valid", "perplexity": perplexity(nats), "nats": nats}

    depths = score_depths(run, at, found(whole["valid"]))
    return results, depths


def make_measure(run: Run):
    """Makes ``measure(windows, keep=None, description="") -> mean of -log p in nats``.

    ``keep`` is as in `LM.__call__`; it is data, so one executable serves every depth. Each token's
    log p depends on its window alone, and they are added up in double precision: the batch has no
    part in the result.
    """
    model = scored(run.settings.model)
    graph = model_graph(model)

    def nll(params, keep, batch, scored):
        network = nnx.merge(graph, params)
        x_BxTxD = network(batch["input"], keep=keep)
        # Only new tokens reach the output layer, which costs more than many layers do.
        length = batch["weight"].shape[1]
        first_Bx1 = jnp.argmax(batch["weight"] > 0, axis=1, keepdims=True)
        place_BxS = first_Bx1 + jnp.arange(scored)[None]
        inside_BxS = place_BxS < length
        place_BxS = jnp.minimum(place_BxS, length - 1)
        target_BxS, weight_BxS = (
            jnp.take_along_axis(batch[name], place_BxS, axis=1) for name in ("target", "weight")
        )
        x_BxSxD = jnp.take_along_axis(x_BxTxD, place_BxS[..., None], axis=1)
        return network.nll(x_BxSxD, target_BxS, jnp.where(inside_BxS, weight_BxS, 0))

    step, everything = over_devices(nll, run.params), masks(model, {})

    def measure(windows, keep=None, description=""):
        keep, scored = everything | (keep or {}), int(np.diff(windows.starts).max())
        total = 0.0
        for batch in pipeline.counted_batches(description, run.settings.evaluate, windows):
            nll_BxS = jax.device_get(step(keep, batch, scored))
            total += float(np.sum(nll_BxS, dtype=np.float64))
        return total / len(windows.tokens)

    return measure


def make_quality(run: Run):
    """Makes ``quality(split, keep=None, description="") -> {"perplexity": ..., "nats": ...}``.

    ``keep`` is as in `make_measure`, whose executable serves every call.
    """
    measure = make_measure(run)
    windows = functools.cache(functools.partial(_windows, run))

    def quality(split, keep=None, description=""):
        nats = measure(windows(split), keep, description=description)
        return {"perplexity": perplexity(nats), "nats": nats}

    return quality


def start_request(settings, network, ids_BxP):
    """Begins a request: reads prompts into ``(log p of the next token [B, V], cache)``."""
    length_B = jnp.full(ids_BxP.shape[0], ids_BxP.shape[1], jnp.int32)
    return network.start_cache(ids_BxP, length_B, max_tokens=settings.prune.new_tokens)


def finish_request(settings, network, state):
    """Ends a request: makes ``prune.new_tokens`` tokens a prompt, no fewer, int32 [B, tokens]."""
    config = dataclasses.replace(
        settings.decode, max_tokens=settings.prune.new_tokens, stop_at_eos=False
    )
    log_probs_BxV, cache = state
    keys_B = jax.random.split(jax.random.key(config.seed), log_probs_BxV.shape[0])
    return continue_sequences(network.step, log_probs_BxV, cache, keys_B, config)


def prompts(run: Run, count: int):
    """Takes prompts of ``prune.prompt_tokens`` tokens from places spread over the validation text.

    Returns:
      int32 [count, P]; each begins with eos.
    """
    tokens, length = valid_rows(run).tokens, run.settings.prune.prompt_tokens
    begins = np.linspace(0, max(len(tokens) - length, 0), count).astype(int)
    ids_BxP = tokens[(begins[:, None] + np.arange(length)[None] - 1) % len(tokens)]
    ids_BxP[:, 0] = EOS
    return ids_BxP.astype(np.int32)


def drafted(settings, network, ids_BxP, draft_N=None):
    """Continues prompts by ``prune.new_tokens`` tokens, see `Task`."""
    return _request(settings, network, ids_BxP, draft_N=draft_N)


def left_early(settings, network, ids_BxP, threshold):
    """Continues prompts by ``prune.new_tokens`` tokens that leave early, see `Task`."""
    step_fn = leaving_step(network, settings, threshold)
    tokens_BxT, found = _request(settings, network, ids_BxP, step_fn=step_fn)
    return tokens_BxT, found.depth_BxW[:, 1:]


def judge(network, ids_BxP, tokens_BxT):
    """Says what a whole network makes of continuations, see `Task`."""
    ids_BxL = jnp.concatenate([ids_BxP, tokens_BxT], axis=1)
    states_BxTxD = network(ids_BxL[:, :-1])[:, ids_BxP.shape[1] - 1 :]
    nll_BxT, _, right_BxT = losses.judge(loss, network, states_BxTxD, tokens_BxT)
    return -nll_BxT, right_BxT, tokens_BxT != PAD


def _request(settings, network, ids_BxP, **how):
    config = dataclasses.replace(
        settings.decode, max_tokens=settings.prune.new_tokens, stop_at_eos=False
    )
    batch, length = ids_BxP.shape
    keys_B = jax.random.split(jax.random.key(config.seed), batch)
    length_B = jnp.full(batch, length, jnp.int32)
    return _continue(network, ids_BxP, length_B, keys_B, config, **how)


def _continue(network, ids_BxP, length_B, keys_B, config, *, keep=None, draft_N=None, step_fn=None):
    """Continues prompts, with a draft, with exits or with neither.

    ``step_fn`` is that of `leaving_step`. Returns (tokens, and `Drafted`, `Left` or None).
    """
    if step_fn:
        # The last token of a prompt may leave early as those do that follow it.
        last_B = jnp.take_along_axis(ids_BxP, length_B[:, None] - 1, axis=1)[:, 0]
        _, cache = network.start_cache(
            ids_BxP, length_B - 1, max_tokens=config.max_tokens, keep=keep
        )
        found = continue_with_exits(step_fn, cache, last_B, keys_B, config)
        return found.tokens_BxW[:, 1:], found
    more = 0 if draft_N is None else config.draft_tokens
    log_probs_BxV, cache = network.start_cache(
        ids_BxP, length_B, max_tokens=config.max_tokens + more, keep=keep
    )
    if draft_N is None:
        return continue_sequences(network.step, log_probs_BxV, cache, keys_B, config), None
    draft, cache = drafting(network, config.draft_tokens), with_draft(cache, draft_N)
    found = continue_with_draft(draft, log_probs_BxV, cache, keys_B, config)
    return found.tokens_BxW, found


def make_answer(run: Run):
    """Makes ``answer(prompts, keep=None) -> dicts`` with ``prompt`` and ``continuation``.

    A prompt may have several lines, and may be blank. ``depths``: see `Task`.
    """
    continue_prompts = make_continuer(run)

    def answer(prompts, keep=None, depths=None):
        continuations = continue_prompts(prompts, keep, depths)
        return [
            {"prompt": prompt, "continuation": continuation}
            for prompt, continuation in zip(prompts, continuations, strict=True)
        ]

    return answer


def make_continuer(run: Run):
    """Makes ``continue_prompts(prompts, keep=None) -> texts``: what the model adds to each prompt.

    It samples by its config's section ``decode``. What is sampled for a prompt depends on the
    seed, on its place in the list and on its text. Of a prompt with more tokens than the model has
    positions for, the last ones count, and a warning names it. ``keep`` is as in `LM.__call__`; it
    is data, as the prompts are, so one executable for each width of prompts serves every depth.
    The draft of ``decode.draft`` proposes tokens where there is one; where ``decode.exit`` lets
    tokens leave early, ``continue_prompts`` also fills a list ``depths``, see `Task`.
    """
    config, model = run.settings.decode, run.settings.model
    everything = masks(model, {})
    graph, params = decoding_network(model, run.params, config.quantize)
    draft_N = draft_mask(run)
    room = model.max_length - config.max_tokens + 1  # the last token is never read

    @jax.jit
    def continue_batch(params, keep, draft_N, ids_BxP, length_B, number_B):
        network = nnx.merge(graph, params)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), number_B)
        how = {"keep": keep, "draft_N": draft_N, "step_fn": leaving_step(network, run.settings)}
        tokens_BxT, found = _continue(network, ids_BxP, length_B, keys_B, config, **how)
        return tokens_BxT, found.depth_BxW[:, 1:] if config.exit else None

    def continue_prompts(prompts, keep=None, depths=None):
        encoded = []
        for number, ids in enumerate(tokenizers.encode(run.tokenizer, prompts)):
            if len(ids) > room:
                logging.warning(
                    "prompt %d has %d tokens: only its last %d count", number + 1, len(ids), room
                )
            encoded.append([EOS, *ids][-room:])
        order = sorted(range(len(encoded)), key=lambda n: len(encoded[n]))
        results, of_each = [""] * len(encoded), [[] for _ in encoded]
        with progress("continuing", len(encoded)) as advance:
            for start in range(0, len(order), config.batch_rows):
                numbers = order[start : start + config.batch_rows]
                # Copies fill the batch up: they end when their originals do.
                filled = numbers + numbers[-1:] * (config.batch_rows - len(numbers))
                ids_BxP, length_B = _padded([encoded[n] for n in filled], room)
                number_B = np.array(filled, np.uint32)
                keep_now = everything | (keep or {})
                tokens_BxT, depth_BxT = jax.device_get(
                    continue_batch(params, keep_now, draft_N, ids_BxP, length_B, number_B)
                )
                for row, (number, tokens_T) in enumerate(zip(numbers, tokens_BxT, strict=False)):
                    results[number] = _text(run, tokens_T)
                    if depths is not None:
                        of_each[number] = depth_BxT[row, tokens_T != PAD].tolist()
                advance(len(numbers))
        if depths is not None:
            depths += of_each
        return results

    return continue_prompts


def _padded(rows, room):
    """Pads rows of ids to a width that few compilations serve: int32 [B, P], lengths int32 [B]."""
    width = padded_width(max(map(len, rows)), room)
    ids_BxP = np.full((len(rows), width), PAD, np.int32)
    for row, ids in zip(ids_BxP, rows, strict=True):
        row[: len(ids)] = ids
    return ids_BxP, np.array([len(ids) for ids in rows], np.int32)


def positions(batch) -> dict:
    """Marks the positions of a batch that hold tokens, bool[B, T], by stack."""
    return {"decoder": batch["weight"] > 0}


def targets(batch):
    """Returns the ids that a batch has to predict, and which of them count, [B, T] each."""
    return batch["target"], batch["weight"] > 0


def scored(model):
    """Returns the config of the network as evaluation computes it.

    The reference's evaluation scores the targets that its loss may ignore.
    """
    return dataclasses.replace(model, adaptive_ignored_targets=False)


def valid_rows(run: Run):
    """Loads the blocks of the validation split that a run's folder holds."""
    texts = streams.load_saved_texts(run.workdir, "valid")
    return streams.prepare_blocks(run.settings.data, run.tokenizer, texts)


def outputs(model, batch, keep=None, watch=None):
    """Computes hidden states [B, T, D], without the output layer, and which count, bool[B, T]."""
    return model(batch["input"], keep=keep, watch=watch), positions(batch)["decoder"]


def _windows(run, split):
    windows = run.settings.evaluate
    texts = streams.load_saved_texts(run.workdir, split)
    tokens, offsets = tokenizers.encode_texts(run.tokenizer, texts)
    check_scored(len(tokens), split, NOTHING)
    return streams.Windows(
        tokens,
        offsets,
        length=windows.length,
        context=windows.context,
        break_mode=windows.break_mode,
    )


def _text(run, tokens_T) -> str:
    """Decodes ids; an eos is a line break, since texts that go on behind one are lines."""
    pieces = [[]]
    for token in map(int, tokens_T):
        if token == EOS:
            pieces.append([])
        elif token != PAD:
            pieces[-1].append(token)
    if run.settings.decode.stop_at_eos:
        del pieces[1:]  # nothing follows the eos that ends it
    return "\n".join(tokenizers.decode(run.tokenizer, pieces))


TASK = Task(
    name="language_modelling",
    settings=LanguageModelSettings,
    score=perplexity_score("tokens"),
    loss=loss,
    flops=lm_flops,
    positions=positions,
    validation=losses.validation(loss),
    prepare=prepare,
    row=row,
    fingerprint=fingerprint,
    valid_rows=valid_rows,
    evaluate=evaluate,
    make_quality=make_quality,
    targets=targets,
    outputs=outputs,
    start_request=start_request,
    finish_request=finish_request,
    make_answer=make_answer,
    prompts=prompts,
    drafted=drafted,
    left_early=left_early,
    judge=judge,
    scored=scored,
)
