"""A run's network as a folder of CTranslate2's, and whether it answers there as it does here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.commands.export_card import Use
from layerdrop_jax.data.packing import fill_row
from layerdrop_jax.data.tokenizers import made_up_names
from layerdrop_jax.decoding.batching import length_limit
from layerdrop_jax.files import write_atomically
from layerdrop_jax.interop import ctranslate2
from layerdrop_jax.models.blocks import exact
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.symbols import EOS, FIRST_WORD, PAD, SPECIAL_SYMBOLS
from layerdrop_jax.tasks import encoder_decoder

# Of float32, in nats, or as a share of the largest log-probability or logit where that is above 1.
# Both compute in float32, and add up in other orders.
TOLERANCE = 1e-4
LINES = 16  # of the validation split, that both translate
MOST_TOKENS = 64  # of an answer, beyond decode.min_length
BEAMS = (1, 4)
ROWS, LENGTH = 2, 32  # of a language model's tokens


def write(folder, run, kind: str) -> tuple[dict, Use]:
    """Fills a folder of CTranslate2's, and compares it with the run.

    Args:
      folder: where the files go.
      run: the run, its layers already cut.
      kind: the type of the weights, float32 or int8.

    Returns:
      what a record says of it, and its `Use`.

    Raises:
      ValueError: the network has what the layout cannot hold, or a float32 folder does not compute
        what the run does.
    """
    model = run.settings.model
    described = model.export_config("ctranslate2")
    state = model.export_params("ctranslate2", run.params)
    words = names_of_ids(run.tokenizer, _size(model))
    ctranslate2.write(folder, described, state, words, kind, start=SPECIAL_SYMBOLS[EOS])
    text = (run.workdir / "tokenizer.json").read_text(encoding="utf-8")
    write_atomically(folder / "tokenizer.json", text)
    if described["spec"] == ctranslate2.ENCODER_DECODER:
        found, use = compare(folder, run, words, kind), _translating(run)
    else:
        found, use = compare_logits(folder, model, run.params, kind), _continuing(run)
    return {"architecture": described["spec"], "quantization": kind} | found, use


def compare(folder, run, words, kind: str) -> dict:
    """Compares an encoder-decoder's folder with the run, on lines of the validation split.

    Log-probabilities of the references tell whether it is the same network, and answers whether it
    is searched in the same way: greedily and by a beam of 4, both with the length penalty and
    the rules of the run's section ``decode``, but for ``unknown_penalty``, which CTranslate2 does
    not have. Answers that reach MOST_TOKENS are compared greedily alone: a beam
    search ends otherwise there.

    Args:
      folder: of CTranslate2's.
      run: the run.
      words: the names of all ids.
      kind: the type of the weights, in which is computed.

    Returns:
      ``compared``, for a person, and ``agreement``: the largest and the mean difference of the
      log-probabilities of so many tokens, in nats, and for each beam
      ``[lines with the same tokens, lines compared]``.

    Raises:
      ValueError: float32, and a log-probability differs by more than TOLERANCE, or a greedy answer
        where there is no tie.
    """
    model = exact(run.settings.model)
    run = run._replace(settings=dataclasses.replace(run.settings, model=model))
    pairs = encoder_decoder.spread_pairs(run, LINES)
    translator = ctranslate2.translator(folder, kind)
    sources = [[words[number] for number in source] for source, _ in pairs]
    targets = [[words[number] for number in target] for _, target in pairs]
    scored = translator.score_batch(sources, targets, max_input_length=0)
    ours = [
        _of_tokens(table_TxV, [*target, EOS])
        for table_TxV, (_, target) in zip(_log_probs(run, pairs), pairs, strict=True)
    ]
    theirs = [np.array(found.log_probs) for found in scored]
    gaps = np.abs(np.concatenate(ours) - np.concatenate(theirs))
    largest, most = float(gaps.max()), max(1.0, float(np.abs(np.concatenate(ours)).max()))
    if kind == "float32" and not largest <= TOLERANCE * most:
        raise ValueError(
            f"{folder}: a log-probability that CTranslate2 computes differs by {largest:.1e}: "
            "nothing was written"
        )
    agreement = {"tokens": gaps.size, "largest": largest, "mean": float(gaps.mean())}
    said = [f"log-probabilities of {gaps.size:,} tokens, which differ by {largest:.1e} at most"]
    for beam in BEAMS:
        ours, theirs, limit = _answers(run, translator, words, pairs, beam)
        if beam == 1 and kind == "float32":
            _check_ties(folder, run, pairs, ours, theirs)
        lines = [
            a == b
            for a, b in zip(ours, theirs, strict=True)
            if beam == 1 or max(len(a), len(b)) < limit
        ]
        agreement[f"beam_{beam}"] = [sum(lines), len(lines)]
        how = "greedily" if beam == 1 else f"by a beam of {beam}"
        said.append(f"{how} the same tokens in {sum(lines)} of {len(lines)} lines")
    return {"compared": f"{'; '.join(said)} ({kind})", "agreement": agreement}


def compare_logits(folder, model, params: dict, kind: str) -> dict:
    """Compares the logits of a language model's folder with ours, on ids that are drawn.

    Args:
      folder: of CTranslate2's.
      model: the network's config.
      params: its parameters.
      kind: the type of the weights, in which is computed.

    Returns:
      ``compared``, for a person, and ``agreement``: the largest difference, as a share of the
      largest logit, and the share of places where the most likely token is the same.

    Raises:
      ValueError: float32, and a logit differs by more than TOLERANCE of the largest.
    """
    graph = model_graph(exact(model))
    size = (ROWS, min(LENGTH, model.max_length))
    ids_BxT = np.random.default_rng(1).integers(FIRST_WORD, model.vocab_size, size)

    @jax.jit
    def logits(params, ids_BxT):
        network = nnx.merge(graph, params)
        return network.logits(network(ids_BxT))

    with jax.default_matmul_precision("highest"):
        ours = np.asarray(logits(params, jnp.asarray(ids_BxT, jnp.int32)))
    theirs = ctranslate2.logits(folder, kind, ids_BxT)
    gap = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours)))
    if kind == "float32" and not gap <= TOLERANCE:
        raise ValueError(
            f"{folder}: the logits that CTranslate2 computes differ by {gap:.1e} of the largest "
            "one: nothing was written"
        )
    same = float(np.mean(ours.argmax(-1) == theirs.argmax(-1)))
    said = f"logits of {ids_BxT.size} tokens, which differ by {gap:.1e} of the largest"
    return {
        "compared": f"{said}; the most likely token is the same in {same:.0%} of places ({kind})",
        "agreement": {"tokens": ids_BxT.size, "largest": gap, "most_likely": same},
    }


def _size(model):
    return getattr(model, "vocab_size", 0) or model.target_vocab_size


def names_of_ids(tokenizer, size) -> list[str]:
    """Lists the names of all ids; one that the tokenizer does not name gets a name of its own."""
    spare = made_up_names(tokenizer.get_vocab())
    return [tokenizer.id_to_token(number) or next(spare) for number in range(size)]


def _log_probs(run, pairs) -> list[np.ndarray]:
    """Computes the log-probabilities float32 [T, V] of what follows each token of a target."""
    model = run.settings.model
    graph = model_graph(model)
    # One more on each side for eos.
    source_length, target_length = (max(map(len, side)) + 1 for side in zip(*pairs, strict=True))
    lengths = {"source_length": source_length, "target_length": target_length}

    @jax.jit
    def log_probs(params, row):
        logits_1xTxV = nnx.merge(graph, params)(jax.tree.map(lambda a: a[None], row))
        return jax.nn.log_softmax(logits_1xTxV[0])

    with jax.default_matmul_precision("highest"):
        return [np.asarray(log_probs(run.params, fill_row([pair], **lengths))) for pair in pairs]


def _of_tokens(table_TxV, ids):
    return table_TxV[np.arange(len(ids)), ids]


def _answers(run, translator, words, pairs, beam):
    """Answers the sources of pairs here and there; returns (ours, theirs, the most tokens)."""
    config, model = run.settings.decode, run.settings.model
    limit = min(config.min_length + MOST_TOKENS, model.max_target_length - 1)
    changed = {"beam": beam, "draft": "", "exit": "", "unknown_penalty": 0.0}
    changed |= {"max_length_a": 0.0, "max_length_b": limit}
    decode = dataclasses.replace(config, **changed)
    run = run._replace(settings=dataclasses.replace(run.settings, decode=decode))
    sources = [source for source, _ in pairs]
    with jax.default_matmul_precision("highest"):
        search = encoder_decoder.make_search(
            run, max_source=encoder_decoder.longest_source(run.settings)
        )
        found = search(sources, description=f"answering here, beam {beam}")
    ours = [n_best[0].tokens if n_best else [] for n_best in found.hypotheses]
    results = translator.translate_batch(
        [[words[number] for number in source] for source in sources],
        **search_options(run.settings),
        max_decoding_length=limit,
    )
    ids = {word: number for number, word in enumerate(words)}
    return ours, [[ids[word] for word in found.hypotheses[0]] for found in results], limit


def search_options(settings) -> dict:
    """Says CTranslate2 how a run's answers are searched for, but for their longest length."""
    config = settings.decode
    return {
        "beam_size": config.beam,
        "length_penalty": config.length_penalty if config.normalize else 0.0,
        "min_decoding_length": config.min_length,
        "no_repeat_ngram_size": config.no_repeat_ngram,
        "max_input_length": encoder_decoder.longest_source(settings),
        "suppress_sequences": [[SPECIAL_SYMBOLS[PAD]]],  # never an answer here
    }


def _check_ties(folder, run, pairs, ours, theirs):
    """Raises a ValueError where greedy answers part at tokens that are not equally likely."""
    apart = [n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if not apart:
        return
    tables = _log_probs(run, [(pairs[n][0], ours[n]) for n in apart])
    for n, table_TxV in zip(apart, tables, strict=True):
        both = [*ours[n], EOS], [*theirs[n], EOS]
        place = next(t for t, (a, b) in enumerate(zip(*both)) if a != b)
        a, b = (float(table_TxV[place, ids[place]]) for ids in both)
        if not abs(a - b) <= TOLERANCE * max(1.0, abs(a)):
            raise ValueError(
                f"{folder}: CTranslate2 answers a line of the validation split otherwise from "
                f"token {place + 1} on, by one that is {a - b:.1e} nats less likely: nothing was "
                "written"
            )


def _translating(run) -> Use:
    settings = run.settings
    limit = length_limit(
        encoder_decoder.longest_source(settings),
        config=settings.decode,
        max_positions=settings.model.max_target_length,
    )
    options = search_options(settings) | {"max_decoding_length": limit}
    return Use(
        "ctranslate2",
        {"translation": "translation", "summarisation": "summarization"}.get(settings.task, ""),
        "An encoder-decoder",
        "Lines become tokens by tokenizer.json. The engine adds `</s>` to a source itself, and "
        "begins the answer with it. These options are the run's own:",
        (
            "import ctranslate2",
            "import tokenizers",
            "",
            'tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")',
            "tokenizer.encode_special_tokens = True  # text that looks like a symbol is text",
            'translator = ctranslate2.Translator(".")',
            'lines = ["a line"]',
            "sources = [tokenizer.encode(line, add_special_tokens=False).tokens for line in lines]",
            "found = translator.translate_batch(",
            "    sources,",
            *(f"    {name}={value!r}," for name, value in options.items()),
            ")",
            "for result in found:",
            "    ids = [tokenizer.token_to_id(token) for token in result.hypotheses[0]]",
            "    print(tokenizer.decode(ids))",
        ),
    )


def _continuing(run) -> Use:
    longest = run.settings.model.max_length
    return Use(
        "ctranslate2",
        "text-generation",
        "A language model",
        "A text begins with `</s>`, and so must a prompt; another `</s>` ends it. Prompt and "
        f"answer together have {longest} tokens at most:",
        (
            "import ctranslate2",
            "import tokenizers",
            "",
            'tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")',
            "tokenizer.encode_special_tokens = True  # text that looks like a symbol is text",
            'generator = ctranslate2.Generator(".")',
            'tokens = tokenizer.encode("a prompt", add_special_tokens=False).tokens',
            'prompts = [["</s>", *tokens]]',
            "found = generator.generate_batch(prompts, max_length=32, sampling_topk=10)",
            "print(tokenizer.decode(found[0].sequences_ids[0]))",
        ),
    )
