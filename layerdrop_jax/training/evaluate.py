"""What is done with a trained run's folder: translate, score, measure every depth, report."""

import functools
import json
import pathlib
import re
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.core.pruning import evenly_spaced
from layerdrop_jax.data import pipeline, tokenizers
from layerdrop_jax.decoding.batching import decode_sentences
from layerdrop_jax.decoding.beam import beam_search, search_options
from layerdrop_jax.models.embeddings import PADDING_ID
from layerdrop_jax.training import settings as settings_lib
from layerdrop_jax.training.bleu import bleu_scores
from layerdrop_jax.training.checkpoints import restore_params
from layerdrop_jax.training.metrics import MetricWriter
from layerdrop_jax.training.state import abstract_params, count_params, model_graph
from layerdrop_jax.training.train import read_config

PRUNED = "pruned.json"  # in the folder of a run that was cut out of another


class Run(typing.NamedTuple):
    """A run's folder, read for inference; ``steps`` are those of the checkpoints used."""

    workdir: pathlib.Path
    config: dict
    settings: settings_lib.Settings
    tokenizer: typing.Any
    params: dict
    steps: list


def load_run(workdir) -> Run:
    """Reads config, tokenizer and parameters: the mean of the last checkpoints, or the best.

    Raises:
      FileNotFoundError, ValueError, OSError: not a run's folder, or one that does not fit itself.
    """
    workdir = pathlib.Path(workdir)
    config = read_config(workdir)
    settings = settings_lib.parse(config)
    average = settings.checkpoint.average
    params, steps = restore_params(
        workdir / "checkpoints",
        abstract_params(settings.model),
        which="average" if average > 1 else "best",
        average=average,
    )
    tokenizer = tokenizers.load_tokenizer(workdir / "tokenizer.json")
    return Run(workdir, config, settings, tokenizer, params, steps)


def original_layers(workdir, side: str, layers) -> list[int]:
    """The numbers that ``layers`` have in the network that was trained, before any pruning."""
    path = workdir / PRUNED
    if not path.exists():
        return list(layers)
    numbers = json.loads(path.read_text(encoding="utf-8"))[f"{side}_layers"]
    return [numbers[layer] for layer in layers]


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

    everything = {
        "encoder": np.ones(model.encoder_layers, bool),
        "decoder": np.ones(model.decoder_layers, bool),
    }

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


def evaluate(workdir) -> list[dict]:
    """Scores the test split, and the network cut to every decoder depth; appends to the metrics.

    The depths keep `evenly_spaced` layers, without fine-tuning. Their words per second are source
    words (split at blanks) over the time of translating the split, compilation left out.

    Returns:
      the whole network's scores on the test split, one record for each kind of BLEU.
    """
    run = load_run(workdir)
    settings = run.settings
    pairs = pipeline.load_eval_text(
        run.workdir, "test", languages=(settings.data.source, settings.data.target)
    )
    sources, references = (list(side) for side in zip(*pairs, strict=True))
    words = sum(len(line.split()) for line in sources)
    translate = make_translator(run)
    step = max(run.steps)

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
    for depth in range(num_layers, 0, -1):
        layers = evenly_spaced(num_layers, depth)
        keep = {"decoder": np.isin(np.arange(num_layers), layers)}
        start = time.perf_counter()
        cut_down, _ = translate(
            sources, keep, description=f"{depth} of {num_layers} decoder layers"
        )
        seconds = time.perf_counter() - start
        depths.append(
            {
                "decoder_layers": original_layers(run.workdir, "decoder", layers),
                "parameters": _params_at_depth(run.params, depth),
                "bleu": bleu_scores(cut_down, references)["sacrebleu"].score,
                "words_per_second": words / seconds,
                "signature": scores["sacrebleu"].signature,
            }
        )
    writer = MetricWriter(run.workdir)
    for kind, records in (("test", results), ("depth", depths)):
        for record in records:
            writer.write(kind, step, record)
    writer.close()
    (run.workdir / "data" / f"test.hypotheses.{settings.data.target}").write_text(
        "".join(line + "\n" for line in translations), encoding="utf-8"
    )
    return results


def _params_at_depth(params, depth):
    decoder = params["decoder"]
    num_layers = jax.tree.leaves(decoder)[0].shape[0]
    return count_params(params) - count_params(decoder) * (num_layers - depth) // num_layers
