"""Translation as a task: its data, its test, and what a run does with lines of text."""

import dataclasses
import functools
import hashlib
import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from layerdrop_jax.core.pruning import every_depth
from layerdrop_jax.data import pipeline, tokenizers
from layerdrop_jax.decoding.batching import decode_sentences
from layerdrop_jax.decoding.beam import beam_search, search_options
from layerdrop_jax.models.embeddings import PADDING_ID
from layerdrop_jax.training import accounting, losses
from layerdrop_jax.training.bleu import bleu_scores
from layerdrop_jax.training.runs import (
    Run,
    is_fresh,
    make_tokenizer,
    masks,
    original_layers,
    params_of,
)
from layerdrop_jax.training.state import model_graph

QUALITY, BETTER = "bleu", max
loss = losses.seq2seq_loss
flops = accounting.seq2seq_flops


def prepare(settings, workdir, config):
    """The packed rows of train and valid; a new folder is filled once all of it works."""
    data = settings.data
    pairs, valid, test = (pipeline.load_pairs(data, s) for s in ("train", "valid", "test"))
    fresh = is_fresh(workdir)
    tokenizer = make_tokenizer(
        workdir, tokenizers.train_tokenizer, pairs, data.vocab_size, origin=settings.init.run
    )
    rows = pipeline.prepare_rows(data, tokenizer, pairs, seed=settings.seed)
    valid_rows = pipeline.prepare_rows(data, tokenizer, valid)
    stats = rows.stats
    print(
        f"{stats['pairs']:,} sentence pairs in {stats['rows']:,} rows; "
        f"{stats['skipped_too_long']:,} longer than {data.max_length} tokens skipped; "
        f"padding {stats['source_padding']:.1%} of source tokens, "
        f"{stats['target_padding']:.1%} of target tokens",
        flush=True,
    )
    if jax.process_index() == 0:
        if fresh:  # evaluate, prune and generate need nothing but the run's folder
            for split, held_out in (("valid", valid), ("test", test)):
                languages = data.source, data.target
                pipeline.save_eval_text(workdir, split, held_out, languages=languages)
        tokenizers.write_atomically(workdir / "config.json", json.dumps(config, indent=2) + "\n")
    return rows, valid_rows


def fingerprint(rows) -> str:
    """SHA-256 of the training rows: what the data iterator's position counts in."""
    digest = hashlib.sha256()
    encoded = rows.encoded
    for array in (
        *(encoded.source_tokens, encoded.source_offsets),
        *(encoded.target_tokens, encoded.target_offsets),
        *(rows.row_pairs, rows.row_offsets),
    ):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def make_translator(run: Run):
    """``translate(lines, keep=None, description=None) -> (translations, cut)``.

    ``keep`` is as in `Seq2Seq.__call__`; it is data, so one executable serves every depth. ``cut``
    holds the indices of the lines that were too long and lost their end.
    """
    settings, model = run.settings, run.settings.model
    graph = model_graph(model)

    @functools.partial(jax.jit, static_argnums=4)
    def decode(params, keep, source_BxS, max_length_B, buffer_length):
        network = nnx.merge(graph, params)
        segment_BxS = (source_BxS != PADDING_ID).astype(jnp.int32)
        position_BxS = jnp.broadcast_to(jnp.arange(source_BxS.shape[1]), source_BxS.shape)
        cache = network.start_cache(
            source_BxS,
            segment_BxS,
            position_BxS,
            beam=settings.decode.beam,
            max_length=buffer_length,
            keep=keep,
        )
        return beam_search(
            network.step,
            cache,
            max_length_B,
            buffer_length=buffer_length,
            **search_options(settings.decode),
        )

    everything = masks(model, {})

    def translate(lines, keep=None, description=None):
        decoded = decode_sentences(
            tokenizers.encode(run.tokenizer, lines),
            functools.partial(decode, run.params, everything | (keep or {})),
            config=settings.decode,
            max_source=model.max_source_length,
            max_positions=model.max_target_length,
            description=description,
        )
        best = [n_best[0].tokens if n_best else [] for n_best in decoded.hypotheses]
        texts = tokenizers.decode(run.tokenizer, best)
        # Every byte is in the vocabulary, so a poor model can say a line break.
        return [re.sub(r"[\r\n]+", " ", text) for text in texts], decoded.cut

    return translate


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """BLEU of the test split, whole and cut to every decoder depth; keeps the translations.

    The depths keep the layers of `pruning.every_depth`, without fine-tuning. Their words per second
    are source words (split at blanks) over the time of translating the split, compilation left out.

    Returns:
      ``(scores, depths)``: a record for each kind of BLEU, whole, and one for each depth.
    """
    settings = run.settings
    pairs = pipeline.load_eval_text(
        run.workdir, "test", languages=(settings.data.source, settings.data.target)
    )
    sources, references = (list(side) for side in zip(*pairs, strict=True))
    words = sum(len(line.split()) for line in sources)
    translate = make_translator(run)

    # The whole network goes first: it compiles what all depths then share.
    translations, cut = translate(sources, description="translating the test split")
    scores = bleu_scores(translations, references)
    results = [
        {
            "bleu": score.score,
            "signature": score.signature,
            "sentences": len(sources),
            "cut": len(cut),
            "averaged": list(run.steps),
        }
        for score in scores.values()
    ]
    depths = []
    num_layers = settings.model.decoder_layers
    for strategy, layers in every_depth(num_layers):
        keep = masks(settings.model, {"decoder": layers})
        start = time.perf_counter()
        cut_down, _ = translate(
            sources, keep, description=f"{len(layers)} of {num_layers} decoder layers"
        )
        seconds = time.perf_counter() - start
        depths.append(
            {
                "decoder_layers": original_layers(run.workdir, "decoder", layers),
                "strategy": strategy,
                "parameters": params_of(settings.model, {"decoder": layers}),
                "bleu": bleu_scores(cut_down, references)["sacrebleu"].score,
                "words_per_second": words / seconds,
                "signature": scores["sacrebleu"].signature,
            }
        )
    (run.workdir / "data" / f"test.hypotheses.{settings.data.target}").write_text(
        "".join(line + "\n" for line in translations), encoding="utf-8"
    )
    return results, depths


def make_quality(run: Run):
    """``quality(split, keep=None, description=None) -> {"bleu": ...}`` of the valid or test split.

    ``keep`` is as in `make_translator`, whose executable serves every call.
    """
    translate = make_translator(run)
    languages = run.settings.data.source, run.settings.data.target

    def quality(split, keep=None, description=None):
        pairs = pipeline.load_eval_text(run.workdir, split, languages=languages)
        sources, references = (list(side) for side in zip(*pairs, strict=True))
        translations, _ = translate(sources, keep, description=description)
        return {"bleu": bleu_scores(translations, references)["sacrebleu"].score}

    return quality


def start_request(settings, network, ids_BxP):
    """What it takes to read sources before their first token: a cache."""
    position_BxP = jnp.broadcast_to(jnp.arange(ids_BxP.shape[1]), ids_BxP.shape)
    return network.start_cache(
        ids_BxP,
        jnp.ones_like(ids_BxP),
        position_BxP,
        beam=settings.decode.beam,
        max_length=settings.prune.new_tokens + 1,
    )


def finish_request(settings, network, cache):
    """The search for translations of ``prune.new_tokens`` tokens, no fewer and no more."""
    new_tokens = settings.prune.new_tokens
    batch = cache["memory_segment"].shape[0]
    return beam_search(
        network.step,
        cache,
        jnp.full(batch, new_tokens, jnp.int32),
        buffer_length=new_tokens + 1,
        **search_options(dataclasses.replace(settings.decode, min_length=new_tokens)),
    )


def answer(run: Run, lines, keep=None) -> list[str]:
    """Translates lines, one line each; an empty one stays empty.

    A line with more tokens than the model has positions for loses its end, and a warning names it.
    ``keep`` is as in `make_translator`.
    """
    filled = [number for number, line in enumerate(lines) if line.strip()]
    translations, cut = make_translator(run)(
        [lines[n] for n in filled], keep, description="translating"
    )
    for index in cut:
        logging.warning(
            "line %d has more than %d tokens: its end was cut off",
            filled[index] + 1,
            run.settings.model.max_source_length - 1,
        )
    results = [""] * len(lines)
    for number, translation in zip(filled, translations, strict=True):
        results[number] = translation
    return results


def positions(batch) -> dict:
    """Which positions of a batch hold tokens, bool[B, T] for each stack."""
    return {"encoder": batch["source_segment"] > 0, "decoder": batch["target_segment"] > 0}


def targets(batch):
    """The ids that a batch has to predict, [B, T]."""
    return batch["target_output"]


def scored(model):
    """The config of the network as evaluation computes it."""
    return model


def valid_rows(run: Run):
    """The packed rows of the validation split that a run's folder holds."""
    data = run.settings.data
    pairs = pipeline.load_eval_text(run.workdir, "valid", languages=(data.source, data.target))
    return pipeline.prepare_rows(data, run.tokenizer, pairs)


def outputs(model, batch, keep=None, watch=None):
    """(logits [B, T, V], bool[B, T]: which of them mean something)."""
    return model(batch, keep=keep, watch=watch), positions(batch)["decoder"]
