"""What every encoder-decoder task does: with its data, its test, and lines of text.

A task brings what tells it from the others: how pairs are read and packed, where a source is cut
before it is answered, and the scores of answers, ``score(answers, references) -> [record, ...]``:
a record for each kind of score, with its ``signature``. The first kind is the one by which depths
and other sub-networks are compared.
"""

import dataclasses
import functools
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from layerdrop_jax.data import tokenizers
from layerdrop_jax.data.packing import fill_row
from layerdrop_jax.data.pairs import load_eval_text, save_eval_text, warn_of_padding
from layerdrop_jax.decoding.batching import decode_sentences
from layerdrop_jax.decoding.beam import beam_search, greedy_search, search_options
from layerdrop_jax.decoding.drafts import decode_with_draft
from layerdrop_jax.decoding.exits import decode_with_exits
from layerdrop_jax.models.cut import masks
from layerdrop_jax.models.params import decoding_network
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.depth_settings import exit_depths
from layerdrop_jax.runs.folder import is_fresh, make_tokenizer
from layerdrop_jax.runs.metrics import check_scored
from layerdrop_jax.runs.run import Run
from layerdrop_jax.step import losses
from layerdrop_jax.step.devices import over_devices
from layerdrop_jax.step.flops import seq2seq_flops
from layerdrop_jax.symbols import EOS, PAD
from layerdrop_jax.tasks.depths import score_depths
from layerdrop_jax.tasks.drafting import draft_mask, drafting, with_draft
from layerdrop_jax.tasks.leaving import depth_line, leaving_step, mean_depth

MOST_WARNINGS = 10  # of lines that were cut


def prepare(settings, workdir, *, load_pairs, prepare_rows):
    """Prepares the packed rows of train and valid; fills a new folder once all of it works.

    ``load_pairs`` and ``prepare_rows`` are those of `data.pairs`, or of another module.
    """
    data = settings.data
    pairs, valid, test = (load_pairs(data, split) for split in ("train", "valid", "test"))
    fresh = is_fresh(workdir)
    tokenizer = make_tokenizer(
        workdir, tokenizers.train_tokenizer, pairs, data.vocab_size, origin=settings.init.run
    )
    _check_scored("valid", valid)
    _check_scored("test", test)
    rows, valid_rows = (
        _of_split(split, prepare_rows, data, tokenizer, of_split, **options)
        for split, of_split, options in (
            ("train", pairs, {"seed": settings.seed}),
            ("valid", valid, {}),
        )
    )
    if fresh:  # said once, and of what is trained on
        warn_of_padding(rows)
    stats = rows.stats
    lost = ", ".join(
        f"{stats[name]:,} {what}"
        for name, what in (
            ("skipped_too_long", "pairs too long and skipped"),
            ("skipped_empty", "pairs with an empty side skipped"),
            ("cut_source", "sources cut"),
            ("cut_target", "targets cut"),
        )
        if stats[name]
    )
    print(
        f"{stats['pairs']:,} pairs of texts in {stats['rows']:,} rows; {lost or 'none lost'}; "
        f"padding {stats['source_padding']:.1%} of source tokens, "
        f"{stats['target_padding']:.1%} of target tokens",
        flush=True,
    )
    if fresh and jax.process_index() == 0:
        # evaluate, prune and generate need nothing but the run's folder
        for split, held_out in (("valid", valid), ("test", test)):
            save_eval_text(workdir, split, held_out, languages=_sides(settings))
    return rows, valid_rows


def _of_split(split, prepare_rows, *arguments, **options):
    """Prepares the rows of a split; where there are none, the error names the split."""
    try:
        return prepare_rows(*arguments, **options)
    except ValueError as error:
        raise ValueError(f"{split}: {error}") from None


def row(settings) -> dict:
    """Makes the arrays of a row without a pair."""
    data = settings.data
    return fill_row([], source_length=data.source_length, target_length=data.target_length)


def fingerprint(rows) -> str:
    """Computes the SHA-256 of the training rows: the iterator's position is a place in them."""
    digest = hashlib.sha256()
    encoded = rows.encoded
    for array in (
        *(encoded.source_tokens, encoded.source_offsets),
        *(encoded.target_tokens, encoded.target_offsets),
        *(rows.row_pairs, rows.row_offsets),
    ):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def make_search(run: Run, *, max_source: int):
    """Makes ``search(sentences, keep=None, description=None)``, which gives a `Decoded`.

    A sentence is a list of ids, without eos. ``keep`` is as in `Seq2Seq.__call__`; it is data, so
    an executable serves every depth. The draft of ``decode.draft`` proposes tokens where there is
    one, and changes no answer but at near ties. Where ``decode.exit`` lets tokens leave early, a
    `Hypothesis` has their depths.
    """
    settings, model = run.settings, run.settings.model
    graph, params = decoding_network(model, run.params, settings.decode.quantize)
    draft_N = draft_mask(run)

    def decode(params, shared, rows, buffer_length):
        network, (keep, draft_N) = nnx.merge(graph, params), shared
        source_BxS, max_length_B = rows
        how = {"keep": keep, "draft_N": draft_N, "step_fn": leaving_step(network, settings)}
        found, counts = _search(
            network, source_BxS, max_length_B, buffer_length, settings.decode, **how
        )
        return (*found, counts.depth_BxW[:, None, 1:]) if settings.decode.exit else found

    step, everything = over_devices(decode, params), masks(model, {})

    def search(sentences, keep=None, description=None):
        def decode_batch(source_BxS, max_length_B, buffer_length):
            shared = everything | (keep or {}), draft_N
            return step(shared, (source_BxS, max_length_B), buffer_length)

        with progress(description, len(sentences)) as advance:
            return decode_sentences(
                sentences,
                decode_batch,
                config=settings.decode,
                max_source=max_source,
                max_positions=model.max_target_length,
                advance=advance,
            )

    return search


def make_answerer(run: Run, *, max_source: int):
    """Makes ``answer_texts(texts, keep, description, depths) -> (answers, cut)``, by beam search.

    An answer is one line; that of a text without a token, such as a blank one, is empty, as such
    pairs are left out of training. ``keep`` is as in `make_search`. ``cut`` holds the indices of
    the texts that had more than ``max_source`` tokens, eos included, and lost their end. ``depths``
    is as in `Task`. Evaluation
    and generation both answer by this function, so a score is that of the lines that generation
    writes.
    """
    search = make_search(run, max_source=max_source)

    def answer_texts(texts, keep=None, description=None, depths=None):
        encoded = tokenizers.encode(run.tokenizer, texts)
        filled = [number for number, ids in enumerate(encoded) if ids]
        decoded = search([encoded[number] for number in filled], keep, description)
        best = [n_best[0].tokens if n_best else [] for n_best in decoded.hypotheses]
        answers = [""] * len(texts)
        for number, text in zip(filled, tokenizers.decode(run.tokenizer, best), strict=True):
            # Every byte is in the vocabulary, so a poor model can say a line break.
            answers[number] = re.sub(r"[\r\n]+", " ", text)
        if depths is not None:
            found = [n_best[0].depths if n_best else [] for n_best in decoded.hypotheses]
            of_filled = dict(zip(filled, found, strict=True))
            depths += [of_filled.get(number, []) for number in range(len(texts))]
        return answers, [filled[index] for index in decoded.cut]

    return answer_texts


def evaluate(run: Run, answer_texts, score) -> tuple[list[dict], list[dict]]:
    """Scores the whole network and every decoder depth on the test split.

    It keeps the whole network's answers in the run's folder. The depths keep the layers of
    `pruning.every_depth`, without fine-tuning. Their speed is not measured here, as a cut network
    writes longer nonsense; `frontier` measures it on equally many tokens.

    Returns:
      ``(scores, depths)``: a record for each kind of score, whole, and one for each depth.
    """
    settings = run.settings
    sources, references = _held_out(run, "test")

    score_texts = _make_scorer(run, answer_texts, score)

    # The whole network goes first: it compiles nearly all that depths then share.
    found, answers, cut = score_texts(sources, references, description="decoding the test split")
    about = {"sentences": len(sources), "cut": len(cut), "averaged": list(run.steps)}
    results = [record | about for record in found]
    if settings.decode.exit:
        print(depth_line(run, found[0]["mean_depth"]), flush=True)

    def at(keep, description):
        return score_texts(sources, references, keep, description)[0][0]

    depths = score_depths(run, at)
    (run.workdir / "data" / f"test.hypotheses.{settings.data.target}").write_text(
        "".join(line + "\n" for line in answers), encoding="utf-8"
    )
    return results, depths


def make_quality(run: Run, answer_texts, score):
    """Makes ``quality(split, keep=None, description=None) -> {score: value}`` of valid or test.

    ``keep`` is as in `make_answerer`, whose executable serves every call.
    """

    score_texts = _make_scorer(run, answer_texts, score)

    def quality(split, keep=None, description=None):
        first = score_texts(*_held_out(run, split), keep, description)[0][0]
        return {name: value for name, value in first.items() if name != "signature"}

    return quality


def _make_scorer(run, answer_texts, score):
    """Makes ``score_texts(sources, references, keep, description) -> (records, answers, cut)``.

    Where tokens leave early a record has ``mean_depth``. The signature names the exit rule, and how
    the weights were rounded.
    """
    rule, quantize = run.settings.decode.exit, run.settings.decode.quantize
    tail = (f"|exit:{rule}" if rule else "") + (f"|quantize:{quantize}" if quantize else "")

    def score_texts(sources, references, keep=None, description=None):
        depths = [] if rule else None
        answers, cut = answer_texts(sources, keep, description, depths)
        about = {}
        if rule:
            about |= {"mean_depth": mean_depth(depths)}
            about |= {"exit_depths": list(exit_depths(run.settings))}
        records = [
            record | about | {"signature": record["signature"] + tail}
            for record in score(answers, references)
        ]
        return records, answers, cut

    return score_texts


def start_request(settings, network, ids_BxP):
    """Begins a request: reads sources into the cache from which the search starts."""
    position_BxP = jnp.broadcast_to(jnp.arange(ids_BxP.shape[1]), ids_BxP.shape)
    return network.start_cache(
        ids_BxP,
        jnp.ones_like(ids_BxP),
        position_BxP,
        beam=settings.decode.beam,
        max_length=settings.prune.new_tokens + 1,
    )


def finish_request(settings, network, cache):
    """Ends a request: searches for answers of ``prune.new_tokens`` tokens, no fewer and no more."""
    new_tokens = settings.prune.new_tokens
    batch = cache["memory_segment"].shape[0]
    return beam_search(
        network.step,
        cache,
        jnp.full(batch, new_tokens, jnp.int32),
        buffer_length=new_tokens + 1,
        **search_options(dataclasses.replace(settings.decode, min_length=new_tokens)),
    )


def prompts(run: Run, count: int):
    """Takes sources from places spread over the validation split, cut to ``prune.prompt_tokens``.

    Returns:
      int32 [count, P], each with its eos, then padding.
    """
    length = run.settings.prune.prompt_tokens
    sources, _ = _held_out(run, "valid")
    filled = [ids for ids in tokenizers.encode(run.tokenizer, sources) if ids]
    ids_BxP = np.full((count, length), PAD, np.int32)
    for row, number in zip(ids_BxP, np.linspace(0, len(filled) - 1, count), strict=True):
        ids = [*filled[int(number)][: length - 1], EOS]
        row[: len(ids)] = ids
    return ids_BxP


def spread_pairs(run: Run, count: int) -> list[tuple[list[int], list[int]]]:
    """Takes pairs from places spread over the validation split, as ids without eos.

    Sides that are too long lose their end, and pairs with an empty side are left out; there may be
    fewer than ``count``.
    """
    model = run.settings.model
    limits = longest_source(run.settings) - 1, model.max_target_length - 1
    sides = [tokenizers.encode(run.tokenizer, side) for side in _held_out(run, "valid")]
    filled = [pair for pair in zip(*sides, strict=True) if all(pair)]
    places = np.linspace(0, len(filled) - 1, min(count, len(filled)))
    return [tuple(ids[:n] for ids, n in zip(filled[int(place)], limits)) for place in places]


def longest_source(settings) -> int:
    """Finds how many tokens of a source are read, eos included; what is beyond is cut off."""
    return getattr(settings.data, "max_source", settings.model.max_source_length)


def drafted(settings, network, ids_BxP, draft_N=None):
    """Answers sources greedily with at most ``prune.new_tokens`` tokens, see `Task`."""
    new_tokens = settings.prune.new_tokens
    limit_B = jnp.full(ids_BxP.shape[0], new_tokens, jnp.int32)
    config = dataclasses.replace(settings.decode, beam=1)
    found, counts = _search(network, ids_BxP, limit_B, new_tokens + 1, config, draft_N=draft_N)
    return found.tokens_BxMxT[:, 0], counts


def left_early(settings, network, ids_BxP, threshold):
    """Answers sources with at most ``prune.new_tokens`` tokens that leave early, see `Task`."""
    new_tokens = settings.prune.new_tokens
    limit_B = jnp.full(ids_BxP.shape[0], new_tokens, jnp.int32)
    found, counts = _search(
        network,
        ids_BxP,
        limit_B,
        new_tokens + 1,
        settings.decode,
        step_fn=leaving_step(network, settings, threshold),
    )
    return found.tokens_BxMxT[:, 0], counts.depth_BxW[:, 1:]


def judge(network, ids_BxP, tokens_BxT):
    """Says what a whole network makes of answers, see `Task`."""
    batch = {"source": ids_BxP, "target_output": tokens_BxT}
    batch["target_input"] = jnp.pad(tokens_BxT[:, :-1], ((0, 0), (1, 0)), constant_values=EOS)
    for side, ids in (("source", ids_BxP), ("target", tokens_BxT)):
        batch[f"{side}_segment"] = (ids != PAD).astype(jnp.int32)
        batch[f"{side}_position"] = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    states_BxTxD = network.states(batch)
    nll_BxT, _, right_BxT = losses.judge(losses.seq2seq_loss, network, states_BxTxD, tokens_BxT)
    return -nll_BxT, right_BxT, tokens_BxT != PAD


def _search(
    network,
    source_BxS,
    max_length_B,
    buffer_length,
    config,
    *,
    keep=None,
    draft_N=None,
    step_fn=None,
):
    """Searches for answers, with a draft, with exits or with neither.

    ``step_fn`` is that of `leaving_step`. Returns (`Hypotheses`, and `Drafted`, `Left` or None).
    """
    more = 0 if draft_N is None else config.draft_tokens
    cache = network.start_cache(
        source_BxS,
        (source_BxS != PAD).astype(jnp.int32),
        jnp.broadcast_to(jnp.arange(source_BxS.shape[1]), source_BxS.shape),
        beam=config.beam,
        max_length=buffer_length + more,
        keep=keep,
    )
    options = {"buffer_length": buffer_length} | search_options(config)
    if step_fn:
        decode = functools.partial(decode_with_exits, step_fn, cache)
    elif draft_N is None:
        return beam_search(network.step, cache, max_length_B, take=network.take, **options), None
    else:
        draft, cache = drafting(network, config.draft_tokens), with_draft(cache, draft_N)
        decode = functools.partial(decode_with_draft, draft, cache)
    return greedy_search(decode, max_length_B, **options)


def answer(answer_texts, texts, keep=None, depths=None, *, max_source: int) -> list[str]:
    """Answers texts, one line each; an empty one stays empty.

    A text with more tokens than ``max_source``, eos included, loses its end, and a warning names
    its line. ``keep`` and ``depths`` are as in `make_answerer`.
    """
    answers, cut = answer_texts(texts, keep, description="decoding", depths=depths)
    for index in cut[:MOST_WARNINGS]:
        logging.warning(
            "line %d has more than %d tokens: its end was cut off", index + 1, max_source - 1
        )
    if len(cut) > MOST_WARNINGS:
        logging.warning("and so was that of %d lines more", len(cut) - MOST_WARNINGS)
    return answers


def positions(batch) -> dict:
    """Marks the positions of a batch that hold tokens, bool[B, T] for each stack."""
    return {"encoder": batch["source_segment"] > 0, "decoder": batch["target_segment"] > 0}


def targets(batch):
    """Returns the ids that a batch has to predict, and which count: int and bool [B, T]."""
    return batch["target_output"], positions(batch)["decoder"]


def valid_rows(run: Run, prepare_rows):
    """Loads the packed rows of the validation split that a run's folder holds."""
    pairs = load_eval_text(run.workdir, "valid", languages=_sides(run.settings))
    return prepare_rows(run.settings.data, run.tokenizer, pairs)


def outputs(model, batch, keep=None, watch=None):
    """Computes logits [B, T, V], and which of them mean something, bool[B, T]."""
    return model(batch, keep=keep, watch=watch), positions(batch)["decoder"]


# What these tasks have in common, as entries of a `Task`.
SHARED = {
    "loss": losses.seq2seq_loss,
    "flops": seq2seq_flops,
    "positions": positions,
    "validation": losses.validation(losses.seq2seq_loss),
    "row": row,
    "fingerprint": fingerprint,
    "targets": targets,
    "outputs": outputs,
    "start_request": start_request,
    "finish_request": finish_request,
    "prompts": prompts,
    "drafted": drafted,
    "left_early": left_early,
    "judge": judge,
}


def _held_out(run, split):
    """Reads the sources and the references of a split from the run's folder."""
    pairs = load_eval_text(run.workdir, split, languages=_sides(run.settings))
    _check_scored(split, pairs)
    return tuple(list(side) for side in zip(*pairs, strict=True))


def _check_scored(split, pairs):
    filled = sum(bool(source.strip() and target.strip()) for source, target in pairs)
    check_scored(filled, split, f"none of its {len(pairs):,} pairs has text on both sides")


def _sides(settings):
    return settings.data.source, settings.data.target
