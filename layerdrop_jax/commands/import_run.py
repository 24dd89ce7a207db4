"""A folder of Hugging Face's as a run's folder: evaluated, cut and trained on like any other."""

import copy
import hashlib
import json
import pathlib
import typing
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from layerdrop_jax.commands.export_run import compare
from layerdrop_jax.commands.finetune import OWN
from layerdrop_jax.data import foreign, labelled, pretraining, streams, tokenizers
from layerdrop_jax.files import write_atomically, write_json
from layerdrop_jax.interop import folders, huggingface
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.params import count_params, make_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import write_params
from layerdrop_jax.runs.folder import check_new, made_whole, write_config
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import MASK
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
    """Names the task for which a folder of Hugging Face's holds a network.

    Raises:
      ValueError, FileNotFoundError: a folder that cannot be read, or a network that is not known.
    """
    return _task(huggingface.fields(folders.read_json(folders.find(source) / "config.json")))


class Incoming(typing.NamedTuple):
    """A folder of Hugging Face's as this package would have it.

    Attributes:
      source: the folder.
      found: its config.json.
      fields: of a model's config, what decides the network's function.
      symbols: ids of its special symbols.
      tokenizer: its tokenizer.json, renumbered.
      order: for each id the one that it has in the folder, int64[V].
      config: of the run, but for what it leaves to the text.
    """

    source: pathlib.Path
    found: dict
    fields: dict
    symbols: dict
    tokenizer: dict
    order: np.ndarray
    config: dict


def look_at(source, config: dict, changes=()) -> Incoming:
    """Reads all of a folder but its weights.

    Args:
      source, config, changes: as for `import_run`.

    Raises:
      ValueError, FileNotFoundError: as `import_run`.
    """
    source = folders.find(source)
    found = folders.read_json(source / "config.json")
    fields = huggingface.fields(found)
    tokenizer = folders.read_json(source / "tokenizer.json")
    if _task(fields) == "language_modelling":
        symbols = _symbols(source, found)
    else:
        symbols = _encoder_symbols(source, tokenizer)
    content, order = foreign.renumber(tokenizer, fields["vocab_size"], symbols)
    config = _config(settings_lib.change(config, changes, tuple(config)), fields, len(order))
    _shorten(config)
    return Incoming(source, found, fields, symbols, content, order, config)


def _task(fields):
    if "decoder_layers" in fields:
        return "language_modelling"
    return "classification" if fields["num_classes"] else "masked_lm"


def import_run(source, workdir, config: dict, *, changes=(), given: Sequence[str] = ()) -> dict:
    """Writes the run's folder of a network of Hugging Face's.

    Those are Llama, Mistral, Qwen2, Qwen3 and GPT-2, each for causal LM, and RoBERTa and BERT, with
    the masked language model's head, for classification of sequences, or without a head; then the
    masked language model's is drawn, and only training makes something of it.

    What the network is comes from ``source``; everything else, the text by which it is judged
    among it, from ``config``. Its ids are renumbered (see `foreign.renumber`). Before the folder
    is put in place, what it holds is compared with ``source``, number by number and, where torch
    and transformers are installed, output by output.

    Args:
      source: a folder with config.json, tokenizer.json and weights, see `folders.find`.
      workdir: the folder to make.
      config: of the task that `task_of_folder` names, such as configs/llama.py; lengths above what
        the network has positions for become less.
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
    source, found, fields, symbols, content, order, config = look_at(source, config, changes)
    kind = LMConfig if "decoder_layers" in fields else EncoderConfig
    model = kind(**config["model"])
    there = huggingface.uniform(folders.read_state(source), found)
    if not huggingface.has_head(found):
        drawn = model.export_params("huggingface", make_params(model, config["seed"]))
        there |= _in_old_order(huggingface.encoder_head(drawn, model.family), order)
    tables = {key: np.asarray(there[key])[order] for key in huggingface.WORDS if key in there}
    params = model.import_params("huggingface", there | tables)
    record = {
        "output": str(workdir),
        "architecture": found["architectures"][0],
        "parameters": count_params(params),
        "vocab_size": len(order),
    }
    with made_whole(workdir) as partial:
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        write_atomically(partial / "tokenizer.json", text)
        config = fit(config, tokenizer=tokenizers.load_tokenizer(partial / "tokenizer.json"))
        parsed = settings_lib.parse(config)
        settings_lib.check_read(given, parsed)
        settings_lib.check_read([change.partition("=")[0] for change in changes], parsed, "--set=")
        if config["task"] == "classification":
            _write_examples(partial, parsed, found)
        else:
            _write_texts(partial, parsed)
        digest = hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
        about = {"imported": record["architecture"], "config_sha256": digest}
        write_params(partial / "checkpoints", STEP, params, about)
        write_config(partial, config)
        run = load_run(partial)
        tokenizers.check_size(run.tokenizer, len(order))
        state = model.export_params("huggingface", jax.device_get(run.params))
        here = _in_old_order(state, order)
        record["compared"] = compare(source, model, run.params, here, there, order)
    _warn(source, found, fields, symbols)
    return record


def _warn(source, found, fields, symbols):
    """Says what a user should know of a network that came in."""
    if not huggingface.has_head(found):
        logging.warning(
            "%s has no head: that of a masked language model was drawn here, and what it answers "
            "means nothing until it is trained; --mode=finetune with configs/glue.py puts another "
            "one in its place",
            source,
        )
    elif "decoder_layers" in fields and symbols.get("bos") not in (None, symbols["eos"]):
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
    if config["task"] != task or config["init"]["run"]:
        example = {"language_modelling": "llama", "masked_lm": "roberta"}.get(task, "glue")
        raise ValueError(
            f"--config is for task={config['task']!r}: this network needs one of {task} that "
            f"starts from nothing, such as configs/{example}.py"
        )
    config = copy.deepcopy(dict(config))
    config["model"] |= fields | {"vocab_size": vocab_size}
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
    longest = config["model"]["max_length"]
    data, prune = config["data"], config["prune"]
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
    return state | {key: state[key][rows] for key in huggingface.WORDS if key in state}
