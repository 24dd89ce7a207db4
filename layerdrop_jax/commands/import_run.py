"""A network of Hugging Face's or the reference's as a run's folder, which is like any other."""

import copy
import json
import pathlib
import typing
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from layerdrop_jax.commands.export_run import compare
from layerdrop_jax.commands.finetune import OWN
from layerdrop_jax.data import (
    foreign,
    foreign_files,
    labelled,
    pairs,
    pretraining,
    streams,
    summaries,
    tokenizers,
)
from layerdrop_jax.files import sha256_of, write_atomically, write_json
from layerdrop_jax.interop import fairseq, fairseq_files, folders, huggingface, translators
from layerdrop_jax.models.embeddings import sinusoids
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.params import count_params, make_params
from layerdrop_jax.models.seq2seq import Seq2SeqConfig
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import write_params
from layerdrop_jax.runs.folder import check_new, made_whole, write_config
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import BOS, EOS, MASK, PAD, SPECIAL_SYMBOLS, UNK
from layerdrop_jax.training.fitting import fit

STEP = 0  # of its checkpoint: no update was made here
# The special symbols of an encoder's tokenizer by the names of tokenizer_config.json, and what they
# are called where it is silent.
ENCODER_SYMBOLS = {
    "bos": ("cls_token", "<s>", "[CLS]"),
    "pad": ("pad_token", "<pad>", "[PAD]"),
    "eos": ("sep_token", "</s>", "[SEP]"),
    "unk": ("unk_token", "<unk>", "[UNK]"),
    "mask": ("mask_token", MASK, "[MASK]"),
}


def task_of_folder(source) -> str:
    """Names the task for which a folder of Hugging Face's, or a checkpoint, holds a network.

    Raises:
      ValueError, FileNotFoundError: what cannot be read, or a network that is not known.
    """
    source = folders.find(source)
    if fairseq_files.is_checkpoint(source):
        return _task(fairseq_files.fields(*fairseq_files.read(source)))
    return _task(huggingface.fields(folders.read_json(source / "config.json")))


class Incoming(typing.NamedTuple):
    """A network of another library's as this package would have it.

    Attributes:
      library: ``huggingface`` or ``fairseq``.
      source: the folder, or the checkpoint.
      found: its config.json, or the checkpoint's settings.
      state: weights by the library's names; {} where they have not been read yet.
      fields: of a model's config, what decides the network's function.
      symbols: ids of its special symbols.
      frame: the pieces that its tokenizer puts around a text by itself.
      note: what a user has to know of its tokenizer; "" for nothing.
      tokenizer: the content of its tokenizer.json, renumbered.
      order: for each id the one that it has in the folder, int64[V].
      config: of the run, but for what it leaves to the text.
    """

    library: str
    source: pathlib.Path
    found: dict
    state: dict
    fields: dict
    symbols: dict
    frame: tuple[str, ...]
    note: str
    tokenizer: dict
    order: np.ndarray
    config: dict


def look_at(source, config: dict, changes=()) -> Incoming:
    """Reads all of a folder but its weights; a checkpoint holds everything in one.

    Args:
      source, config, changes: as for `import_run`.

    Raises:
      ValueError, FileNotFoundError: as `import_run`.
    """
    source = folders.find(source)
    if fairseq_files.is_checkpoint(source):
        library, (found, state) = "fairseq", fairseq_files.read(source)
        fields, folder = fairseq_files.fields(found, state), source.parent
        languages, mask = fairseq_files.languages(found), fairseq_files.has_mask(found)
        tokenizer = foreign_files.read_dictionary(folder, languages, mask=mask)
        symbols = {"bos": BOS, "pad": PAD, "eos": EOS, "unk": UNK}
        if _task(fields) in ("masked_lm", "classification"):
            symbols["mask"] = fields["vocab_size"] - 1
        found = found | {
            "id2label": fairseq_files.read_labels(folder, fields.get("num_classes", 0))
        }
    else:
        library, state = "huggingface", {}
        found = folders.read_json(source / "config.json")
        fields = huggingface.fields(found)
        tokenizer = foreign_files.read_tokenizer(source)
        if "decoder_layers" in fields:
            symbols = _symbols(source, found)
        else:
            symbols = _encoder_symbols(source, tokenizer.content)
    size = fields.get("vocab_size", fields.get("target_vocab_size"))
    content, order = foreign.renumber(tokenizer.content, size, symbols, more=tokenizer.made)
    config = _config(settings_lib.change(config, changes, tuple(config)), fields, len(order))
    _shorten(config)
    frame, note = _frame(tokenizer.content), tokenizer.note
    named = {"fields": fields, "symbols": symbols, "frame": frame, "note": note}
    named |= {"tokenizer": content, "order": order, "config": config}
    return Incoming(library, source, found, state, **named)


def _task(fields):
    if fields.keys() >= {"encoder_layers", "decoder_layers"}:
        return "translation"
    if "decoder_layers" in fields:
        return "language_modelling"
    return "classification" if fields["num_classes"] else "masked_lm"


def import_run(source, workdir, config: dict, *, changes=(), given: Sequence[str] = ()) -> dict:
    """Writes the run's folder of a network of Hugging Face's, or of a checkpoint of fairseq's.

    Those are Llama, Mistral, Qwen2, Qwen3, GPT-2 and OPT, each for causal LM; FSMT, M2M100, BART
    and mBART, for conditional generation; and RoBERTa, BERT and DistilBERT, with the masked
    language model's head, for classification of sequences (not DistilBERT), or without a head; then
    the masked language model's is drawn, and only training makes something of it. Checkpoints are
    those of `fairseq_files.fields`.

    What the network is comes from ``source``; everything else, the text by which it is judged
    among it, from ``config``. Its ids are renumbered (see `foreign.renumber`). Before the folder
    is put in place, what it holds is compared with ``source``, number by number and, where torch
    and transformers are installed, output by output.

    Args:
      source: a folder with config.json, a tokenizer (`foreign_files.read_tokenizer`) and weights,
        see `folders.find`.
      workdir: the folder to make.
      config: of the task that `task_of_folder` names, such as configs/llama.py, or of
        summarisation where that is translation; lengths above what the network has positions for
        become less.
      changes: values of it that are others, "data.path=texts".
      given: the keys of ``config`` that the user set by hand.

    Returns:
      ``output``, ``architecture``, ``parameters``, ``vocab_size`` and ``compared``: what was.

    Raises:
      ValueError: a network or an option that this one does not have, which is named; a key that the
        source decides; labels that the data does not have; a ``workdir`` that is in use.
      FileNotFoundError, OSError: a file that is missing or cannot be written; no text.
    """
    workdir = check_new(workdir, "workdir")
    _check_given([*given, *(change.partition("=")[0] for change in changes)])
    incoming = look_at(source, config, changes)
    source, found, order, config = incoming.source, incoming.found, incoming.order, incoming.config
    library = incoming.library
    theirs = library == "huggingface"
    there = incoming.state
    if theirs:
        raw = folders.read_state(source)
        there = huggingface.uniform(raw, found)
    if theirs and _task(incoming.fields) == "translation":
        translators.check_sinusoids(raw, found, sinusoids)
        config["model"]["share_embeddings"] = translators.sharing(there, found)
    model = _KINDS[_task(incoming.fields)](**config["model"])
    if theirs and not huggingface.has_head(found):
        drawn = model.export_params("huggingface", make_params(model, config["seed"]))
        there |= _in_old_order(huggingface.encoder_head(drawn, model.family), order)
    if not np.array_equal(order, np.arange(len(order))) and getattr(model, "cutoffs", ()):
        raise ValueError(
            f"{source}: the words of an adaptive softmax keep the order of their bands"
        )
    tables = {key: np.asarray(there[key])[order] for key in _WORDS if key in there}
    params = model.import_params(library, there | tables)
    record = {
        "output": str(workdir),
        "architecture": found["architectures"][0] if theirs else str(found["arch"]),
        "parameters": count_params(params),
        "vocab_size": len(order),
    }
    with made_whole(workdir) as partial:
        text = json.dumps(incoming.tokenizer, ensure_ascii=False, indent=1) + "\n"
        write_atomically(partial / "tokenizer.json", text)
        config = fit(config, tokenizer=tokenizers.load_tokenizer(partial / "tokenizer.json"))
        parsed = settings_lib.parse(config)
        settings_lib.check_read(given, parsed)
        settings_lib.check_read([change.partition("=")[0] for change in changes], parsed, "--set=")
        if config["task"] == "classification":
            _write_examples(partial, parsed, found)
        elif config["task"] in _PAIRS:
            _write_pairs(partial, parsed)
        else:
            _write_texts(partial, parsed)
        file = source / "config.json" if theirs else source
        about = {"imported": record["architecture"], "config_sha256": sha256_of(file)}
        write_params(partial / "checkpoints", STEP, params, about)
        write_config(partial, config)
        run = load_run(partial)
        tokenizers.check_size(run.tokenizer, len(order))
        here = _in_old_order(model.export_params(library, jax.device_get(run.params)), order)
        record["compared"] = _compared(incoming, model, run.params, here, there)
    _warn(incoming)
    return record


def _compared(incoming, model, params, here, there) -> str:
    """Compares what a run's folder holds with where it is from; says what was compared."""
    if incoming.library == "huggingface":
        here = huggingface.uniform(here, incoming.found)
        return compare(incoming.source, model, params, here, there, incoming.order)
    here = fairseq.uniform(here)
    if model.stacks.keys() == {"encoder"} and model.num_classes:  # the other head stays behind
        here = {key: array for key, array in here.items() if "lm_head" not in key}
    every = folders.compare_numbers(incoming.source, here, there)
    return f"{every}, read back; not the logits: fairseq does not run here"


_WORDS = (*huggingface.WORDS, *fairseq.WORDS)
_KINDS = {"language_modelling": LMConfig, "translation": Seq2SeqConfig}
_KINDS |= dict.fromkeys(("masked_lm", "classification"), EncoderConfig)
_PAIRS = {"translation": pairs.load_pairs, "summarisation": summaries.load_pairs}


def _warn(incoming):
    """Says what a user should know of a network that came in."""
    source, found, symbols = incoming.source, incoming.found, incoming.symbols
    if incoming.note:
        logging.warning("of the tokenizer of %s: %s", source, incoming.note)
    task = _task(incoming.fields)
    if task == "translation":
        eos = SPECIAL_SYMBOLS[EOS]
        if incoming.frame not in ((), ("A", eos)):
            logging.warning(
                "%s frames a source as %s; here it ends with %s, and what it has learned of the "
                "other symbols only training replaces",
                source,
                " ".join(("TEXT" if piece == "A" else piece) for piece in incoming.frame),
                eos,
            )
        if found.get("forced_bos_token_id") is not None:
            logging.warning(
                "%s begins every answer with id %s, which nothing here asks for: its first word is "
                "free",
                source,
                found["forced_bos_token_id"],
            )
    elif incoming.library == "huggingface" and not huggingface.has_head(found):
        logging.warning(
            "%s has no head: that of a masked language model was drawn here, and what it answers "
            "means nothing until it is trained; --mode=finetune with configs/glue.py puts another "
            "one in its place",
            source,
        )
    elif task == "language_modelling" and incoming.library == "huggingface":
        _warn_of_begin(source, symbols)


def _warn_of_begin(source, symbols):
    if symbols.get("bos") not in (None, symbols["eos"]):
        logging.warning(
            "%s begins its texts with id %s and ends them with %s; here the second one does both, "
            "and perplexities and answers are of texts that begin so",
            source,
            symbols["bos"],
            symbols["eos"],
        )


def _check_given(keys):
    for key in keys:
        section, _, name = key.partition(".")
        own = name in OWN and name != "num_classes"
        theirs = section == "init" or (section == "model" and not own)
        if theirs or key in ("task", "data.vocab_size", "data.tokenizer"):
            raise ValueError(
                f"{key} is given, but --mode=import takes that from the folder in --from: leave it "
                "out"
            )


def _symbols(source, found) -> dict:
    """Finds the ids of the special symbols: in config.json, or else in generation_config.json."""
    path = source / "generation_config.json"
    others = folders.read_json(path) if path.exists() else {}
    symbols = {}
    for name in ("bos", "eos", "pad", "unk"):
        key = f"{name}_token_id"
        number = found.get(key) if found.get(key) is not None else others.get(key)
        symbols[name] = number[0] if isinstance(number, list) else number
    return symbols


def _frame(content) -> tuple[str, ...]:
    """Lists what a tokenizer.json puts around a text "A" by itself; () where it does not say."""
    said = content.get("post_processor") or {}
    for step in said.get("processors") or [said]:
        if step.get("type") == "TemplateProcessing":
            return tuple(next(iter(piece.values()))["id"] for piece in step["single"])
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            return (step["cls"][0], "A", step["sep"][0])
    return ()


def _encoder_symbols(source, tokenizer) -> dict:
    """Finds the ids of an encoder's special symbols: by tokenizer_config.json, or by their names.

    Raises:
      ValueError: the tokenizer has no entries by name, or none for the end of a text.
    """
    path = source / "tokenizer_config.json"
    said = folders.read_json(path) if path.exists() else {}
    vocabulary = tokenizer.get("model", {}).get("vocab")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    symbols = {}
    for symbol, (key, *names) in ENCODER_SYMBOLS.items():
        name = said.get(key) or next((name for name in names if name in ids), None)
        symbols[symbol] = ids.get(name["content"] if isinstance(name, dict) else name)
    if symbols["eos"] is None:
        raise ValueError(
            f"{source / 'tokenizer.json'} has no {said.get('sep_token', '</s> and no [SEP]')}: a "
            "text of an encoder ends with one (sep_token)"
        )
    return symbols


def _config(config, fields, vocab_size) -> dict:
    """Makes the config of the run: that which is given, for the network that the fields are."""
    task = _task(fields)
    tasks = tuple(_PAIRS) if task in _PAIRS else (task,)
    if config["task"] not in tasks or config["init"]["run"]:
        examples = {"language_modelling": "llama", "masked_lm": "roberta", "translation": "text"}
        example = examples.get(task, "glue")
        raise ValueError(
            f"--config is for task={config['task']!r}: this network needs one of "
            f"{' or '.join(tasks)} that starts from nothing, such as configs/{example}.py"
        )
    config = copy.deepcopy(dict(config))
    names = ("source_vocab_size", "target_vocab_size") if task in _PAIRS else ("vocab_size",)
    config["model"] |= fields | dict.fromkeys(names, vocab_size)
    config["data"]["vocab_size"] = vocab_size
    if "tokenizer" in config["data"]:
        config["data"]["tokenizer"] = "bpe"
    config["checkpoint"]["average"] = 1  # there is one
    return config


def _write_texts(folder, parsed):
    """Writes the texts by which a language model, causal or masked, is judged."""
    text = streams if parsed.task == "language_modelling" else pretraining
    for split in ("valid", "test"):
        streams.save_texts(folder, split, text.load_texts(parsed.data, split))
    write_json(folder / "data" / "source.json", text.source_record(parsed.data))


def _write_pairs(folder, parsed):
    """Writes the pairs by which a translation or summaries are judged."""
    languages = parsed.data.source, parsed.data.target
    for split in ("valid", "test"):
        held_out = _PAIRS[parsed.task](parsed.data, split)
        pairs.save_eval_text(folder, split, held_out, languages=languages)


def _write_examples(folder, parsed, found):
    """Writes the examples by which a classification is judged, and the names of its outputs.

    Raises:
      ValueError: the network has other labels than the data.
    """
    _, names = labelled.load_training(parsed.data)
    theirs = huggingface.read_labels(found)
    if len(theirs) == 1:
        ours, same = (), not names
    else:
        by_name = {name.casefold(): name for name in names}
        ours = tuple(by_name.get(name.casefold()) for name in theirs)
        if theirs == [f"LABEL_{number}" for number in range(len(names))]:
            ours = names
        same = len(names) == len(theirs) and set(ours) == set(names)
    if not same:
        raise ValueError(
            f"the labels of the network are {', '.join(theirs)}, and those of data.dataset="
            f"{parsed.data.dataset} are {', '.join(names) or 'numbers'}: give them the same names, "
            "in the data or in id2label of config.json"
        )
    for split, examples in labelled.load_held_out(parsed.data).items():
        labelled.save_examples(folder, split, examples)
    labelled.save_head(folder, labelled.Head(ours, labelled.text_columns(parsed.data)))


def _shorten(config):
    """Makes the lengths of a config no more than the network has positions for."""
    model, data, prune = config["model"], config["data"], config["prune"]
    if config["task"] in _PAIRS:
        sides = {side: model[f"max_{side}_length"] for side in ("source", "target")}
        for side, longest in sides.items():
            for name in {f"max_{side}", "max_length"} & data.keys():
                data[name] = min(data[name], longest)
        prune["prompt_tokens"] = min(prune["prompt_tokens"], sides["source"])
        prune["new_tokens"] = min(prune["new_tokens"], sides["target"] - 1)
        return
    longest = model["max_length"]
    data["length"] = min(data["length"], longest)
    for name in ("prompt_tokens", "new_tokens"):
        prune[name] = min(prune[name], longest // 2)
    if "decode" in config:
        evaluate = config["evaluate"]
        evaluate["length"] = min(evaluate["length"], longest)
        if evaluate["context"] >= evaluate["length"]:
            evaluate["context"] = evaluate["length"] // 2
        config["decode"]["max_tokens"] = min(config["decode"]["max_tokens"], longest // 2)


def _in_old_order(state, order) -> dict:
    """Puts the rows of a state that are words in the order that they have in the folder."""
    first = {}
    for number, old in enumerate(order.tolist()):
        first.setdefault(old, number)  # a row that serves twice
    rows = [first[old] for old in range(len(first))]
    return state | {key: state[key][rows] for key in _WORDS if key in state}
