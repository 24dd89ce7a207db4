"""A folder of Hugging Face's as a run's folder: evaluated, cut and trained on like any other."""

import copy
import hashlib
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from layerdrop_jax.commands.export_run import compare
from layerdrop_jax.commands.finetune import OWN
from layerdrop_jax.data import foreign, streams, tokenizers
from layerdrop_jax.files import write_atomically, write_json
from layerdrop_jax.interop import folders, huggingface
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.params import count_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import write_params
from layerdrop_jax.runs.folder import check_new, made_whole, write_config
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.training.fitting import fit

STEP = 0  # of its checkpoint: no update was made here
# The tables whose rows are words, by key.
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def import_run(source, workdir, config: dict, *, changes=(), given: Sequence[str] = ()) -> dict:
    """Writes the run's folder of a Llama, Mistral, Qwen2 or Qwen3, each for causal LM.

    What the network is comes from ``source``; everything else, the text by which it is judged
    among it, from ``config``. Its ids are renumbered (see `foreign.renumber`). Before the folder
    is put in place, what it holds is compared with ``source``, number by number and, where torch
    and transformers are installed, logit by logit.

    Args:
      source: a folder with config.json, tokenizer.json and weights.
      workdir: the folder to make.
      config: of a language model, such as configs/llama.py; lengths above what the network has
        positions for become less.
      changes: values of it that are others, "data.path=texts".
      given: the keys of ``config`` that the user set by hand.

    Returns:
      ``output``, ``architecture``, ``parameters``, ``vocab_size`` and ``compared``: what was.

    Raises:
      ValueError: a network or an option that this one does not have, which is named; a key that the
        source decides; a ``workdir`` that is in use.
      FileNotFoundError, OSError: a file that is missing or cannot be written; no text.
    """
    workdir, source = check_new(workdir, "workdir"), pathlib.Path(source)
    _check_given([*given, *(change.partition("=")[0] for change in changes)])
    found = folders.read_json(source / "config.json")
    fields = huggingface.decoder_fields(found)
    symbols = _symbols(source, found)
    content, order = foreign.renumber(
        folders.read_json(source / "tokenizer.json"), fields["vocab_size"], symbols
    )
    config = _config(settings_lib.change(config, changes, tuple(config)), fields, len(order))
    model = LMConfig(**config["model"])
    state = folders.read_state(source)
    tables = {key: np.asarray(state[key])[order] for key in TABLES if key in state}
    params = model.import_params("huggingface", state | tables)
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
        _shorten(config)
        parsed = settings_lib.parse(config)
        settings_lib.check_read(given, parsed)
        settings_lib.check_read([change.partition("=")[0] for change in changes], parsed, "--set=")
        data = parsed.data
        for split in ("valid", "test"):
            streams.save_texts(partial, split, streams.load_texts(data, split))
        write_json(partial / "data" / "source.json", streams.source_record(data))
        digest = hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
        about = {"imported": record["architecture"], "config_sha256": digest}
        write_params(partial / "checkpoints", STEP, params, about)
        write_config(partial, config)
        run = load_run(partial)
        tokenizers.check_size(run.tokenizer, len(order))
        record["compared"] = compare(source, model, run.params, _as_there(model, run, order), order)
    if symbols.get("bos") not in (None, symbols["eos"]):
        logging.warning(
            "%s begins its texts with id %s and ends them with %s; here the second one does both, "
            "and perplexities and answers are of texts that begin so",
            source,
            symbols["bos"],
            symbols["eos"],
        )
    return record


def _check_given(keys):
    for key in keys:
        section, _, name = key.partition(".")
        theirs = section == "init" or (section == "model" and name not in OWN)
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


def _config(config, fields, vocab_size) -> dict:
    """Makes the config of the run: that which is given, for the network that the fields are."""
    if config["task"] != "language_modelling" or config["init"]["run"]:
        raise ValueError(
            f"--config is for task={config['task']!r}: --mode=import needs one of a language model "
            "that starts from nothing, such as configs/llama.py"
        )
    config = copy.deepcopy(dict(config))
    config["model"] |= fields | {"vocab_size": vocab_size}
    config["data"] |= {"vocab_size": vocab_size, "tokenizer": "bpe"}
    config["checkpoint"]["average"] = 1  # there is one
    return config


def _shorten(config):
    """Makes the lengths of a config no more than the network has positions for."""
    longest = config["model"]["max_length"]
    data, evaluate, prune = config["data"], config["evaluate"], config["prune"]
    data["length"] = min(data["length"], longest)
    evaluate["length"] = min(evaluate["length"], longest)
    if evaluate["context"] >= evaluate["length"]:
        evaluate["context"] = evaluate["length"] // 2
    config["decode"]["max_tokens"] = min(config["decode"]["max_tokens"], longest // 2)
    for name in ("prompt_tokens", "new_tokens"):
        prune[name] = min(prune[name], longest // 2)


def _as_there(model, run, order) -> dict:
    """Writes a run's parameters in the layout of the folder, its words in their old order."""
    state, first = model.export_params("huggingface", jax.device_get(run.params)), {}
    for number, old in enumerate(order.tolist()):
        first.setdefault(old, number)  # a row that serves twice
    rows = [first[old] for old in range(len(first))]
    return state | {key: state[key][rows] for key in TABLES if key in state}
