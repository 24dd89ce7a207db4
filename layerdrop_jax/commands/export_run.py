"""A run's network, whole or cut, as a folder that another library loads."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.commands import export_ctranslate2, export_fairseq
from layerdrop_jax.commands.export_card import Use, write_card
from layerdrop_jax.data import labelled
from layerdrop_jax.data.packing import fill_row
from layerdrop_jax.decoding.batching import length_limit
from layerdrop_jax.depth import strategies
from layerdrop_jax.depth.prune import cut
from layerdrop_jax.files import write_json
from layerdrop_jax.interop import ctranslate2, fairseq_files, folders, huggingface
from layerdrop_jax.models.blocks import exact
from layerdrop_jax.models.exits import fold_exits, without_exits
from layerdrop_jax.models.params import count_params, model_graph
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.folder import check_new, made_whole, original_layers
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import BOS, EOS, FIRST_WORD, MASK, PAD, SPECIAL_SYMBOLS, UNK
from layerdrop_jax.tasks.encoder_decoder import longest_source

# Of the largest logit. Both compute in float32, and add up in other orders.
TOLERANCE = 1e-4
SIDES = "source", "target"
ROWS, LENGTH = 2, 32  # of the tokens whose logits are compared


def export_run(
    workdir,
    output="",
    *,
    library: str = "huggingface",
    quantization: str = "float32",
    flags=None,
    changes=(),
    command: str = "",
) -> dict:
    """Writes a run's network as another library's folder: whole, pruned before, or cut now.

    The folder holds the weights, config.json, the tokenizer and README.md, a model card. Before it
    is put in place it is read back and compared with the run: see `compare` here, and in
    `export_ctranslate2`; of the reference's checkpoint every number and setting is.

    Args:
      workdir: a run's folder.
      output: the folder to make; "" is the run's name with -LIBRARY behind it.
      library: one of the ``exporters`` of the network's config.
      quantization: the type of the weights, float32 or, for CTranslate2, int8.
      flags: a strategy by stack, see `strategies`; a stack without one stays whole.
      changes: what to do otherwise than the run's config says, see `settings.change`.
      command: what started it, for the card.

    Returns:
      ``output``, ``architecture``, ``parameters``, the layers by their numbers in the network that
      was trained first, how they were chosen, ``exit_maps``, where there were any: what became of
      them, and ``compared``: what was.

    Raises:
      ValueError: the network has what the layout cannot hold, or a library that is needed is not
        installed; an ``output`` that is in use or among a run's own files; a folder that does not
        hold what it should.
      FileNotFoundError, OSError: not a run's folder, or a file that cannot be written.
    """
    if library == "fairseq":
        fairseq_files.check_installed("--to=fairseq")
    if library == "ctranslate2":
        ctranslate2.check_installed()
    elif quantization != "float32":
        raise ValueError(
            f"--to={library} writes float32, not --quantization={quantization}: leave that out, or "
            "name --to=ctranslate2"
        )
    output = check_new(output or f"{str(workdir).rstrip('/')}-{library}")
    run = load_run(workdir, changes)
    wanted = strategies.wanted(run, flags or {})
    _check(run.settings.model, library)  # refused before layers are looked for
    layers, chosen = strategies.choose(run, wanted)
    config, params = cut(run, layers)
    config, params, folded = _without_exits(config, jax.device_get(params))
    small = run._replace(config=config, settings=settings.parse(config), params=params)
    record = {
        "output": str(output),
        "parameters": count_params(params),
        **{
            f"{stack}_layers": original_layers(run.workdir, stack, kept)
            for stack, kept in layers.items()
        },
        "chosen": chosen,
        **folded,
    }
    with made_whole(output) as partial:
        if library == "ctranslate2":
            found, use = export_ctranslate2.write(partial, small, quantization)
        elif library == "fairseq":
            found, use = export_fairseq.write(partial, small)
        else:
            found, use = _write_huggingface(partial, small)
        record |= found
        write_card(partial, run, record, layers, use, command)
    return record


def _check(model, library) -> None:
    """Raises a ValueError where a library's layout does not hold a network."""
    plain = without_exits(model)
    try:
        plain.export_config(library)
    except ValueError as error:
        if plain is model:
            raise
        raise ValueError(f"{error} (without its exit maps the output layer is its own)") from error


def _without_exits(config, params) -> tuple[dict, dict, dict]:
    """Folds exit maps, where there are any, and checks that the network says what it said.

    Args:
      config: a run's, nested.
      params: the network's, on the host.

    Returns:
      (config, params, what a record says of it).

    Raises:
      ValueError: as `fold_exits`; or a logit differs by more than TOLERANCE of the largest one.
    """
    model = settings.parse(config).model
    plain, folded = fold_exits(model, params)
    if plain is model:
        return config, params, {}
    drawn = _draw(model)
    difference = _difference(plain, folded, drawn, _logits(model, params, drawn))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"without its exit maps the network's logits differ by {difference:.1e} of the largest "
            "one: nothing was written"
        )
    config = config | {"model": {name: getattr(plain, name) for name in config["model"]}}
    said = f"went into the weights behind them; logits differ by {difference:.1e} of the largest"
    return config, folded, {"exit_maps": said}


def _write_huggingface(folder, run):
    """Fills a folder of Hugging Face's; returns (what a record says of it, its `Use`)."""
    model = run.settings.model
    state = model.export_params("huggingface", run.params)
    fields = model.export_config("huggingface") | _symbols(run)
    folders.write_state(folder, state)
    write_json(folder / "config.json", fields)
    _write_tokenizer(run, folder)
    compared = compare(folder, model, run.params, state, folders.read_state(folder))
    return {"architecture": fields["architectures"][0], "compared": compared}, _use(run)


def compare(folder, model, params: dict, state: dict, found: dict, order=None) -> str:
    """Checks that a folder of Hugging Face's holds the network that these parameters are.

    Args:
      folder: config.json and weights.
      model: the network's config.
      params: its parameters.
      state: the same in the folder's layout.
      found: the weights of the folder.
      order: the id that each id of the parameters has in the folder; None where ids are the same.

    Returns:
      what was compared, for a person.

    Raises:
      ValueError: a number differs, or an output by more than TOLERANCE of the largest one.
    """
    every = folders.compare_numbers(folder, state, found)
    headless = not huggingface.has_head(folders.read_json(pathlib.Path(folder) / "config.json"))
    what = "hidden states" if headless else "logits"
    if not folders.can_compute():
        return f"{every}, read back; not the {what}: {' and '.join(folders.LIBRARIES)} are needed"
    drawn = _draw(model)
    ids = (drawn["source"], drawn["target_input"]) if _translates(model) else (drawn,)
    theirs = folders.outputs(folder, *(a if order is None else order[a] for a in ids))
    if order is not None and not headless and not getattr(model, "num_classes", 0):
        theirs = theirs[..., order]
    difference = _difference(model, params, drawn, theirs, headless)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{folder}: the {what} that transformers computes differ by {difference:.1e} of the "
            "largest one: nothing was written"
        )
    return f"{every}, and {what} by transformers, which differ by {difference:.1e} of the largest"


def _translates(model):
    return {"encoder", "decoder"} <= model.stacks.keys()


def _draw(model):
    """Draws ids [B, T], or the batch of an encoder-decoder; padding would hide tokens."""
    draw = np.random.default_rng(1)
    if not _translates(model):
        size = (ROWS, min(LENGTH, model.max_length))
        return draw.integers(FIRST_WORD, model.vocab_size, size)
    lengths = {f"{side}_length": getattr(model, f"max_{side}_length") for side in SIDES}
    lengths = {name: min(LENGTH, length) for name, length in lengths.items()}
    vocabulary = min(model.source_vocab_size, model.target_vocab_size)
    pairs = [
        [draw.integers(FIRST_WORD, vocabulary, length - 1) for length in lengths.values()]
        for _ in range(ROWS)
    ]
    rows = [fill_row([pair], **lengths) for pair in pairs]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _difference(model, params, drawn, theirs, headless=False) -> float:
    """Finds the largest difference of outputs, as a share of the largest of them."""
    ours = _logits(model, params, drawn, headless)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def _logits(model, params, drawn, headless=False) -> np.ndarray:
    """Computes the logits of what `_draw` gives, or hidden states, in float32."""
    graph = model_graph(exact(model))

    @jax.jit
    def run(params, drawn):
        network = nnx.merge(graph, params)
        x_BxTxD = network(drawn)
        if headless or _translates(model):  # the latter gives logits at once
            return x_BxTxD
        head = network.classify if getattr(model, "num_classes", 0) else network.logits
        return head(x_BxTxD)

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, jax.tree.map(lambda a: jnp.asarray(a, jnp.int32), drawn)))


def _symbols(run) -> dict:
    """Writes which ids are special symbols, and what the classes are called."""
    if _translates(run.settings.model):
        languages = run.settings.data.source, run.settings.data.target
        fields = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
        fields["decoder_start_token_id"] = EOS
        return fields | ({"langs": languages} if run.settings.model.norm == "post" else {})
    if not _is_encoder(run):
        # A text begins with eos here, so it is the symbol that begins one there too.
        return {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
    fields = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if run.settings.model.num_classes > 1:
        fields |= huggingface.labels(labelled.load_labels(run.workdir))
    return fields


def _is_encoder(run):
    return run.settings.model.stacks.keys() == {"encoder"}


def _write_tokenizer(run, folder):
    """Writes the tokenizer so that a text gets the ids which this network reads.

    These are eos and then the text's own, those of a row of an encoder's, see `labelled.frame`, or
    those of a source and then eos.
    """
    model = run.settings.model
    content = json.loads((run.workdir / "tokenizer.json").read_text(encoding="utf-8"))
    bos, eos = SPECIAL_SYMBOLS[BOS], SPECIAL_SYMBOLS[EOS]
    encoder = _is_encoder(run)
    if _translates(model):
        longest, single, pair = longest_source(run.settings), ["A", eos], ["A", eos, "B", eos]
    elif encoder:
        longest, single, pair = model.max_length, [bos, "A", eos], [bos, "A", eos, eos, "B", eos]
    else:
        longest, single, pair = model.max_length, [eos, "A"], [eos, "A", eos, "B"]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [_piece(name) for name in single],
        "pair": [_piece(name) for name in pair],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]}
            for name, number in ((bos, BOS), (eos, EOS))
        },
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos if encoder or _translates(model) else eos,
        "eos_token": eos,
        "pad_token": SPECIAL_SYMBOLS[PAD],
        "unk_token": SPECIAL_SYMBOLS[UNK],
        "split_special_tokens": True,  # text that looks like a symbol is text
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
    }
    if encoder:
        about |= {"cls_token": bos, "sep_token": eos}
    if encoder and not run.settings.model.num_classes:
        # A text to fill in has masks in it. White space before one belongs to what is looked for.
        about |= {"mask_token": MASK, "split_special_tokens": False}
        for token in content["added_tokens"]:
            token["lstrip"] = token["lstrip"] or token["content"] == MASK
    write_json(folder / "tokenizer.json", content, indent=1)
    write_json(folder / "tokenizer_config.json", about)


def _piece(name):
    kind = "Sequence" if name in ("A", "B") else "SpecialToken"
    return {kind: {"id": name, "type_id": 0}}


_CAUSAL = Use(
    "transformers",
    "text-generation",
    "A language model",
    "A text begins with `</s>`, and so must a prompt; another `</s>` ends it. The tokenizer puts "
    "the first one there, unless it is called with `add_special_tokens=False`:",
    (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'model = AutoModelForCausalLM.from_pretrained(".")',
        'ids = tokenizer("a prompt", return_tensors="pt").input_ids',
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0]))",
    ),
)
_MASKED = Use(
    "transformers",
    "fill-mask",
    "A masked language model",
    "A row is `<s>`, a text and `</s>`, which the tokenizer puts there; `<mask>` is what it fills "
    "in:",
    (
        "from transformers import pipeline",
        "",
        'fill = pipeline("fill-mask", ".")',
        'print(fill("one <mask> three"))',
    ),
)
_CLASSES = Use(
    "transformers",
    "text-classification",
    "A classifier",
    "A row is `<s> A </s>`, or of two texts `<s> A </s></s> B </s>`, which the tokenizer makes:",
    (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'model = AutoModelForSequenceClassification.from_pretrained(".")',
        'logits = model(**tokenizer("a text", return_tensors="pt")).logits',
        "print(model.config.id2label, logits.softmax(-1))",
    ),
)


def _translating(run) -> Use:
    settings = run.settings
    limit = length_limit(
        longest_source(settings),
        config=settings.decode,
        max_positions=settings.model.max_target_length,
    )
    options = {"max_new_tokens": limit + 1, "num_beams": settings.decode.beam}
    if settings.decode.beam > 1 and settings.decode.normalize:
        options["length_penalty"] = settings.decode.length_penalty
    if settings.decode.no_repeat_ngram:
        options["no_repeat_ngram_size"] = settings.decode.no_repeat_ngram
    return Use(
        "transformers",
        {"translation": "translation", "summarisation": "summarization"}.get(settings.task, ""),
        "An encoder-decoder",
        "A source ends with `</s>`, which the tokenizer puts there, and an answer begins with it:",
        (
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            'model = AutoModelForSeq2SeqLM.from_pretrained(".")',
            'ids = tokenizer("a line", truncation=True, return_tensors="pt").input_ids',
            f"options = {options}",
            "answer = model.generate(ids, **options)[0]",
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        ),
    )


def _use(run) -> Use:
    if _translates(run.settings.model):
        return _translating(run)
    if not _is_encoder(run):
        return _CAUSAL
    if not run.settings.model.num_classes:
        return _MASKED
    scale = labelled.label_scale(run.settings.data)
    how = f"{_CLASSES.how[:-1]}. Its one output is the number divided by {scale:g}:"
    return _CLASSES if scale == 1 else _CLASSES._replace(how=how)
