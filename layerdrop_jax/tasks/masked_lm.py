"""Masked language modelling as a task: how RoBERTa is pre-trained, and filling masks in."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.data import pipeline, pretraining, streams, tokenizers
from layerdrop_jax.decoding.batching import padded_width
from layerdrop_jax.models.cut import masks
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.metrics import check_scored, perplexity
from layerdrop_jax.runs.run import Run
from layerdrop_jax.runs.settings import MaskedLMSettings
from layerdrop_jax.step import losses, masking
from layerdrop_jax.step.devices import over_devices
from layerdrop_jax.step.flops import encoder_flops
from layerdrop_jax.symbols import BOS, EOS, FIRST_WORD, MASK, PAD, mask_id
from layerdrop_jax.tasks.depths import score_depths
from layerdrop_jax.tasks.task import Task
from layerdrop_jax.tasks.text_runs import perplexity_score, prepare_texts

NOTHING = "of its few tokens none is masked (15 % are); give it more text"
CANDIDATES = 5  # for each mask that is filled in
SIGNATURE = "base:e|masked:15%|of them kept:10%,random:10%|seed:0"
loss = losses.masked_lm_loss


def prepare(settings, workdir):
    """Prepares the rows of train and valid; fills a new folder once all of it works."""
    return prepare_texts(
        settings,
        workdir,
        load=pretraining.load_texts,
        train_tokenizer=tokenizers.train_byte_bpe,
        make_blocks=pretraining.prepare_blocks,
        source_record=pretraining.source_record,
        check=functools.partial(_check_masked, settings.data),
    )


def _check_masked(data, split, rows):
    batches = pipeline.eval_batches(data, rows)
    check_scored(any(np.asarray(targets(b)[1]).any() for b in batches), split, NOTHING)


def row(settings) -> dict:
    """Makes the arrays of a row without a token."""
    return pretraining.empty_row(settings.data.length)


def fingerprint(rows) -> str:
    """Computes the SHA-256 of the training tokens: the iterator's position is a place in them."""
    return hashlib.sha256(np.ascontiguousarray(rows.tokens)).hexdigest()


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """Measures the perplexity of masked tokens of valid and test, and of valid at every depth.

    It is exp(-sum of log p / tokens) over the masked tokens. The masks are the same for every
    network and every depth: see `masking.row_keys`. The depths keep the layers of
    `pruning.every_depth`.

    Returns:
      ``(scores, depths)``: a record for each split, whole, and one for each depth.
    """
    results, measure = [], make_measure(run)
    for split in ("valid", "test"):
        nats, tokens = measure(split, description=f"perplexity of {split}")
        if split == "valid":
            whole = nats
        results.append(
            {
                "split": split,
                "perplexity": perplexity(nats),
                "nats": nats,
                "tokens": tokens,
                "signature": SIGNATURE,
                "averaged": list(run.steps),
            }
        )

    def at(keep, description):
        return found(measure("valid", keep, description=description)[0])

    def found(nats):
        return {"split": "valid", "perplexity": perplexity(nats), "nats": nats}

    depths = score_depths(run, at, found(whole))
    return results, depths


def make_measure(run: Run):
    """Makes ``measure(split, keep=None, description="") -> (mean of -log p in nats, tokens)``.

    ``keep`` is as in `Encoder.__call__`; it is data, so one executable serves every depth. The
    tokens are the masked ones.
    """
    graph = model_graph(run.settings.model)

    def nll(params, keep, batch):
        _, nll, tokens = loss(nnx.merge(graph, params), batch, smoothing=0.0, keep=keep)
        return nll, tokens

    step = over_devices(nll, run.params)
    everything = masks(run.settings.model, {})
    rows = functools.cache(functools.partial(_rows, run))

    def measure(split, keep=None, description=""):
        keep, sums = everything | (keep or {}), []
        for batch in pipeline.counted_batches(description, run.settings.data, rows(split)):
            sums.append([np.sum(part) for part in jax.device_get(step(keep, batch))])
        nll, tokens = np.sum(sums, axis=0, dtype=np.float64)
        check_scored(tokens, split, NOTHING)
        return float(nll / tokens), int(tokens)

    return measure


def make_quality(run: Run):
    """Makes ``quality(split, keep=None, description="") -> {"perplexity": ..., "nats": ...}``.

    ``keep`` is as in `make_measure`, whose executable serves every call.
    """
    measure = make_measure(run)

    def quality(split, keep=None, description=""):
        nats, _ = measure(split, keep, description=description)
        return {"perplexity": perplexity(nats), "nats": nats}

    return quality


def start_request(settings, network, ids_BxP):
    """Begins a request: computes the features [B, P, D] of texts."""
    return network(ids_BxP)


def finish_request(settings, network, x_BxPxD):
    """Ends a request: computes logits of ``prune.new_tokens`` masks, fewer in a shorter text."""
    return network.logits(x_BxPxD[:, : settings.prune.new_tokens])


def make_answer(run: Run):
    """Makes ``answer(lines, keep=None) -> dicts``, which fills the masks of each line in.

    A dict holds ``text``, the line with the likeliest token at each ``<mask>``, each taken for
    itself, and ``masks``: for each the likeliest tokens with their probabilities. Special symbols
    are no answer: an end in the middle would hide the rest. White space before a mask
    belongs to the token that is looked for, as in the tokenizer. ``answer`` raises a ValueError
    for a line without a mask, or with more tokens than the model has positions for.
    """
    model = run.settings.model
    graph, everything = model_graph(model), masks(model, {})

    @jax.jit
    def fill(params, keep, ids_BxT, place_BxM):
        network = nnx.merge(graph, params)
        x_BxTxD = network(ids_BxT, keep=keep)
        x_BxMxD = jnp.take_along_axis(x_BxTxD, place_BxM[..., None], axis=1)
        probabilities_BxMxV = jax.nn.softmax(network.logits(x_BxMxD))
        words_BxMxW = probabilities_BxMxV[..., FIRST_WORD : mask_id(model.vocab_size)]
        shares_BxMxK, words_BxMxK = jax.lax.top_k(words_BxMxW, CANDIDATES)
        return shares_BxMxK, words_BxMxK + FIRST_WORD

    def answer(lines, keep=None):
        encoded = [_encode_masked(run, number, line) for number, line in enumerate(lines, 1)]
        results = []
        with progress("filling masks in", len(lines)) as advance:
            for ids in encoded:
                width = padded_width(len(ids), model.max_length)
                ids_1xT = np.full((1, width), PAD, np.int32)
                ids_1xT[0, : len(ids)] = ids
                places = np.flatnonzero(ids_1xT[0] == mask_id(model.vocab_size))
                place_1xM = np.zeros((1, padded_width(len(places), width)), np.int32)
                place_1xM[0, : len(places)] = places
                best = fill(run.params, everything | (keep or {}), ids_1xT, place_1xM)
                shares_MxK, words_MxK = (a[0, : len(places)] for a in jax.device_get(best))
                results.append(_filled(run, ids, places, shares_MxK, words_MxK))
                advance(1)
        return results

    return answer


def positions(batch) -> dict:
    """Marks the positions of a batch that hold tokens, bool[B, T], by stack."""
    return {"encoder": batch["tokens"] != PAD}


@functools.partial(jax.jit, static_argnums=1)
def _evaluation_masks(batch, vocab_size):
    return masking.mask_tokens(masking.row_keys(None, batch), batch["tokens"], vocab_size)


def targets(batch):
    """Returns the ids that evaluation has to predict, and which of them count, [B, M] each."""
    # Which tokens are asked for does not depend on what takes their place.
    masked = _evaluation_masks(batch, FIRST_WORD + 1)
    return masked.target_BxM, masked.weight_BxM > 0


def valid_rows(run: Run):
    """Loads the rows of the validation split that a run's folder holds."""
    return _rows(run, "valid")


def outputs(model, batch, keep=None, watch=None):
    """Computes features [B, T, D], without the output layer, and which count, bool[B, T]."""
    return model(batch["tokens"], keep=keep, watch=watch), positions(batch)["encoder"]


def _rows(run, split):
    texts = streams.load_saved_texts(run.workdir, split)
    return pretraining.prepare_blocks(run.settings.data, run.tokenizer, texts)


def _encode_masked(run, number, line) -> list[int]:
    pieces = line.split(MASK)
    if len(pieces) < 2:
        raise ValueError(f"line {number} has no {MASK} to fill in")
    pieces = [piece.rstrip() for piece in pieces[:-1]] + pieces[-1:]
    ids = [BOS]
    for piece in tokenizers.encode(run.tokenizer, pieces):
        ids += [*piece, mask_id(run.settings.model.vocab_size)]
    ids[-1] = EOS
    if len(ids) > run.settings.model.max_length:
        raise ValueError(
            f"line {number} has {len(ids)} tokens, more than model.max_length="
            f"{run.settings.model.max_length}"
        )
    return ids


def _filled(run, ids, places, shares_MxK, words_MxK) -> dict:
    ids = list(ids)
    for place, words_K in zip(places, words_MxK, strict=True):
        ids[place] = int(words_K[0])
    (text,) = tokenizers.decode(run.tokenizer, [ids[1:]])
    found = []
    for shares_K, words_K in zip(shares_MxK, words_MxK, strict=True):
        words = tokenizers.decode(run.tokenizer, [[int(word)] for word in words_K])
        of_word = zip(words, shares_K, strict=True)
        found.append([{"token": word, "probability": round(float(p), 6)} for word, p in of_word])
    return {"text": text, "masks": found}


TASK = Task(
    name="masked_lm",
    settings=MaskedLMSettings,
    score=perplexity_score("masked tokens"),
    loss=loss,
    flops=encoder_flops,
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
)
