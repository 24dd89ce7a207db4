"""Checkpoints of the reference implementation (fairseq): what stands in a file beside the weights.

A file is read as weights and settings alone (torch.load with weights_only=True; of all classes
argparse.Namespace, which holds the settings, is let through): nothing that it may hold is run.
"""

import argparse
import importlib.util
import pathlib
import re

import numpy as np

from layerdrop_jax.interop import fairseq
from layerdrop_jax.interop.layout import PLAIN

CHECKPOINT = "checkpoint.pt"  # the name under which one is written
LIBRARY = "torch"
LABELS = "label/dict.txt"  # beside a checkpoint of a classification, as the reference lays it
_ACTIVATIONS = fairseq.ACTIVATIONS | {"gelu_fast": "gelu_tanh"}
_MASKED, _CLASSES = "masked_lm", "sentence_prediction"


def is_checkpoint(source) -> bool:
    """Says whether a path names a checkpoint rather than a folder."""
    return pathlib.Path(source).suffix == ".pt"


def check_installed(flag: str) -> None:
    """Raises a ValueError where torch, in whose format a checkpoint is, is not installed."""
    if not importlib.util.find_spec(LIBRARY):
        raise ValueError(
            f"{flag}: a checkpoint of fairseq's is a file of torch's, which is not installed here: "
            "pip install torch"
        )


def read(path) -> tuple[dict, dict]:
    """Reads a checkpoint.

    Returns:
      its settings (``args``, or those of model and task in ``cfg``), and its state dict, arrays as
      `fairseq.uniform` gives them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: torch is not installed; a file that is no checkpoint, or that holds more than
        weights and settings.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: --from names a checkpoint or a folder")
    check_installed(f"--from={path}")
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the library raises many kinds
        other = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds a {other[1]}, which is not loaded" if other else type(error).__name__
        raise ValueError(f"{path} cannot be read as weights and settings alone: {what}") from None
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise ValueError(
            f"{path} has no state dict under 'model': it is no checkpoint of fairseq's"
        )
    if found.get("args") is not None:
        args = _as_dict(found["args"])
    elif isinstance(found.get("cfg"), dict):
        args = _as_dict(found["cfg"].get("task")) | _as_dict(found["cfg"].get("model"))
        args["task"] = _as_dict(found["cfg"].get("task")).get("_name", args.get("task"))
        args.setdefault("arch", args.get("_name"))
    else:
        raise ValueError(f"{path} has neither args nor cfg: its network is not described")
    state = {key: tensor.float().numpy() for key, tensor in found["model"].items()}
    return args, fairseq.uniform(state)


def write(path, args: dict, state: dict) -> None:
    """Writes a checkpoint that the reference loads as one of v0.10.0.

    Args:
      path: the file.
      args: its settings.
      state: arrays by the reference's key.

    Raises:
      ValueError: torch is not installed.
    """
    check_installed("--to=fairseq")
    import torch

    names = {"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam"}
    content = {
        "args": argparse.Namespace(**args),
        "model": {key: torch.from_numpy(np.array(array)) for key, array in state.items()},
        "optimizer_history": [names | {"lr_scheduler_state": {"best": None}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
        "last_optimizer_state": None,
    }
    torch.save(content, path)


def fields(args: dict, state: dict) -> dict:
    """Reads settings of a checkpoint as fields of this package's config of a model.

    Args:
      args: the settings.
      state: the weights, which say what some releases' settings do not.

    Returns:
      the fields that decide what the network computes; its noise in training is not among them.

    Raises:
      ValueError: another architecture, which is named, or an option that the network here does not
        have; the message names it and its value.
    """
    arch = str(args.get("arch"))
    if arch.startswith("transformer_lm"):
        return _lm_fields(args, state)
    if arch.startswith(("transformer", "bart")):
        return _seq2seq_fields(args, state)
    if arch.startswith("roberta"):
        return _encoder_fields(args, state)
    raise ValueError(
        f"arch={arch!r} is none of transformer..., transformer_lm..., bart... and roberta..., "
        "which can be read"
    )


def languages(args: dict) -> tuple[str, ...]:
    """Names source and target of a translation's checkpoint; () of another one."""
    found = args.get("source_lang"), args.get("target_lang")
    return found if all(found) else ()


def has_mask(args: dict) -> bool:
    """Says whether the task appends `<mask>` to the dictionary."""
    return str(args.get("arch")).startswith(("roberta", "bart"))


def read_labels(folder, classes: int) -> dict:
    """Names the classes of a checkpoint as config.json of Hugging Face's does.

    Args:
      folder: that of the checkpoint, with LABELS, or without.
      classes: outputs of its head.
    """
    path, names = pathlib.Path(folder) / LABELS, []
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        names = [line.rpartition(" ")[0] for line in lines][:classes]
    names += [f"LABEL_{number}" for number in range(len(names), classes)]
    return {str(number): name for number, name in enumerate(names)}


def seq2seq_args(config) -> dict:
    """Writes the settings of a checkpoint with the encoder-decoder that a config describes.

    Args:
      config: the `Seq2SeqConfig` of the network.

    Raises:
      ValueError: the network has what the reference does not; the message names the key.
    """
    fairseq.check_seq2seq(config)
    pre, learned = config.norm == "pre", config.positions == "learned"
    args = _common(config, "transformer", "translation")
    for stack in ("encoder", "decoder"):
        args |= _of_stack(config, stack, pre, learned)
    return args | {
        "share_all_embeddings": config.share_embeddings == "all",
        "share_decoder_input_output_embed": config.share_embeddings != "none",
        "max_source_positions": config.max_source_length,
        "max_target_positions": config.max_target_length,
        "layernorm_embedding": config.embedding_norm,
        "no_scale_embedding": not config.scale_embeddings,
        "adaptive_softmax_cutoff": None,
        "adaptive_softmax_dropout": 0,
        "adaptive_input": False,
        "tie_adaptive_weights": False,
        "no_cross_attention": False,
        "cross_self_attention": False,
        "encoder_embed_path": None,
        "decoder_embed_path": None,
        "decoder_input_dim": config.embed_dim,
        "decoder_output_dim": config.embed_dim,
        "left_pad_source": "True",
        "left_pad_target": "False",
        "truncate_source": False,
        "load_alignments": False,
        "upsample_primary": 1,
        "num_batch_buckets": 0,
        "eval_bleu": False,
    }


def lm_args(config) -> dict:
    """Writes the settings of a checkpoint with a language model, as `seq2seq_args` does."""
    fairseq.check_lm(config)
    adaptive, learned = bool(config.cutoffs), config.positions == "learned"
    args = _common(config, "transformer_lm", "language_modeling")
    return (
        args
        | _of_stack(config, "decoder", True, learned)
        | {
            "no_decoder_final_norm": not config.final_norm,
            "decoder_input_dim": config.embed_dim,
            "decoder_output_dim": config.embed_dim,
            "share_decoder_input_output_embed": config.tie_embeddings and not adaptive,
            "adaptive_softmax_cutoff": config.adaptive_cutoffs or None,
            "adaptive_softmax_dropout": config.adaptive_dropout,
            "adaptive_softmax_factor": float(config.adaptive_factor),
            "adaptive_input": adaptive,
            "adaptive_input_cutoff": config.adaptive_cutoffs or None,
            "adaptive_input_factor": float(config.adaptive_factor),
            "tie_adaptive_weights": adaptive and config.tie_embeddings,
            "tie_adaptive_proj": adaptive and config.tie_projections,
            "character_embeddings": False,
            "layernorm_embedding": False,
            "no_scale_embedding": not config.scale_embeddings,
            "tokens_per_sample": config.max_length,
            "max_target_positions": config.max_length,
            "sample_break_mode": "none",
            "output_dictionary_size": -1,
            "self_target": False,
            "future_target": False,
            "past_target": False,
            "add_bos_token": False,
            "shorten_method": "none",
            "shorten_data_split_list": "",
        }
    )


def encoder_args(config) -> dict:
    """Writes the settings of a checkpoint with a RoBERTa, as `seq2seq_args` does."""
    fairseq.check_encoder(config)
    args = _common(config, "roberta_base", _CLASSES if config.num_classes else _MASKED)
    args |= _of_stack(config, "encoder", False, True)
    task = {"sample_break_mode": "complete", "mask_prob": 0.15, "leave_unmasked_prob": 0.1}
    task |= {"random_token_prob": 0.1, "freq_weighted_replacement": False}
    task |= {"mask_whole_words": False}
    if config.num_classes:
        task = {"num_classes": config.num_classes, "init_token": 0, "separator_token": 2}
        task |= {"regression_target": config.num_classes == 1, "no_shuffle": False}
        task |= {"classification_head_name": fairseq.HEAD_NAME, "add_prev_output_tokens": False}
    return (
        args
        | task
        | {
            "max_positions": config.max_length,
            "tokens_per_sample": config.max_length,
            "pooler_activation_fn": "tanh",
            "pooler_dropout": config.pooler_dropout,
            "untie_weights_roberta": False,
            "spectral_norm_classification_head": False,
            "shorten_method": "none",
            "shorten_data_split_list": "",
        }
    )


def _common(config, arch, task):
    """Writes what every checkpoint's settings have; the reference fills in what is left out."""
    theirs = {ours: name for name, ours in fairseq.ACTIVATIONS.items()}
    quantised = {"quant_noise_pq": 0.0, "quant_noise_pq_block_size": 8, "quant_noise_scalar": 0.0}
    return quantised | {
        "arch": arch,
        "task": task,
        "criterion": "cross_entropy",
        "optimizer": "adam",
        "adam_betas": "(0.9, 0.98)",
        "adam_eps": 1e-8,
        "weight_decay": 0.0,
        "lr_scheduler": "fixed",
        "lr": [1e-4],
        "seed": 1,
        "data": ".",
        "bpe": None,
        "tokenizer": None,
        "activation_fn": theirs[config.activation],
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "no_token_positional_embeddings": False,
    }


def _of_stack(config, stack, pre, learned):
    values = {
        "layers": config.depth(stack),
        "embed_dim": config.embed_dim,
        "ffn_embed_dim": config.ffn_dim,
        "attention_heads": config.attention_heads,
        "normalize_before": pre,
        "learned_pos": learned,
        "layerdrop": 0.0,
        "layers_to_keep": None,
    }
    return {f"{stack}_{name}": value for name, value in values.items()}


def _check(args, known: dict) -> None:
    """Raises a ValueError where a setting has another value than those known; absent is right."""
    for name, values in known.items():
        if args.get(name, values[0]) not in values:
            raise ValueError(
                f"the checkpoint has {name}={args[name]!r}, and only {values[0]!r} can be read: "
                "this network has nothing like it"
            )


def _read(args, *names):
    """Takes a setting by the first of its names that is there.

    Raises:
      ValueError: none is.
    """
    for name in names:
        if args.get(name) is not None:
            return args[name]
    raise ValueError(f"the checkpoint's settings lack {names[0]}")


def _off(*names):
    return dict.fromkeys(names, (False, None, 0))


# What no network here has, by the names of its settings.
_NONE = _off(
    *("no_token_positional_embeddings", "character_embeddings", "base_layers"),
    *("no_cross_attention", "cross_self_attention", "layer_wise_attention"),
)


def _depth(state, stack, at):
    """Counts the layers of a stack: those that its weights have."""
    layers = {key.removeprefix(f"{at}.layers.").partition(".")[0] for key in state}
    found = sum(name.isdecimal() for name in layers)
    if not found:
        raise ValueError(
            f"the checkpoint has no weights of {at}.layers: {stack} layers are missing"
        )
    return found


def _activation(args):
    name = args.get("activation_fn", "relu")
    _check({"activation_fn": name}, {"activation_fn": tuple(_ACTIVATIONS)})
    return _ACTIVATIONS[name]


def _seq2seq_fields(args, state):
    width = _read(args, "encoder_embed_dim")
    same = {"embed_dim": width}
    for name in ("ffn_embed_dim", "attention_heads"):
        same[name] = _read(args, f"encoder_{name}")
    for name in ("normalize_before", "learned_pos"):
        same[name] = bool(args.get(f"encoder_{name}", False))
    alike = {f"decoder_{name}": (value,) for name, value in same.items()}
    alike |= dict.fromkeys(("decoder_input_dim", "decoder_output_dim"), (width,))
    off = _off("adaptive_softmax_cutoff", "adaptive_input", "no_decoder_final_norm")
    _check(args, _NONE | off | alike)
    bart = str(args["arch"]).startswith("bart")
    every = bool(args.get("share_all_embeddings", False))
    two = bool(args.get("share_decoder_input_output_embed", False))
    sizes = [len(_weights(state, f"{s}.embed_tokens.weight")) for s in ("encoder", "decoder")]
    _one_vocabulary(sizes)
    return {
        "source_vocab_size": sizes[0],
        "target_vocab_size": sizes[1],
        "encoder_layers": _depth(state, "encoder", "encoder"),
        "decoder_layers": _depth(state, "decoder", "decoder"),
        "embed_dim": width,
        "ffn_dim": same["ffn_embed_dim"],
        "attention_heads": same["attention_heads"],
        "norm": "pre" if same["normalize_before"] else "post",
        "activation": _activation(args),
        "share_embeddings": "all" if every else "decoder" if two else "none",
        "positions": "learned" if same["learned_pos"] else "sinusoidal",
        "scale_embeddings": not args.get("no_scale_embedding", bart),
        "embedding_norm": bool(args.get("layernorm_embedding", bart)),
        "max_source_length": _read(args, "max_source_positions", "max_positions"),
        "max_target_length": _read(args, "max_target_positions", "max_positions"),
        "share_layers": 1,
        "exit_maps": False,
        "attention": "auto",
    }


def _lm_fields(args, state):
    width = _read(args, "decoder_embed_dim")
    cutoffs = args.get("adaptive_softmax_cutoff") or ""
    alike = dict.fromkeys(("decoder_input_dim", "decoder_output_dim"), (width,))
    alike |= {"adaptive_input": (bool(cutoffs),)}
    factor = args.get("adaptive_softmax_factor", 4) if cutoffs else 4
    if cutoffs:
        alike |= {"adaptive_input_cutoff": (cutoffs,), "adaptive_input_factor": (factor,)}
    _check(args, _NONE | _off("layernorm_embedding", "add_bos_token") | alike)
    _check({"adaptive_softmax_factor": factor}, {"adaptive_softmax_factor": (int(factor), factor)})
    if cutoffs:
        bands = (f"decoder.embed_tokens.embeddings.{n}.0.weight" for n in range(99))
        size = sum(len(state[key]) for key in bands if key in state)
        tied = bool(args.get("tie_adaptive_weights", False))
    else:
        size = len(_weights(state, "decoder.embed_tokens.weight"))
        tied = bool(args.get("share_decoder_input_output_embed", False))
    return {
        "vocab_size": size,
        "embed_dim": width,
        "ffn_dim": _read(args, "decoder_ffn_embed_dim"),
        "attention_heads": _read(args, "decoder_attention_heads"),
        "decoder_layers": _depth(state, "decoder", "decoder"),
        "norm": "pre" if args.get("decoder_normalize_before", False) else "post",
        "final_norm": "decoder.layer_norm.weight" in state,  # releases say it in other words
        "activation": _activation(args),
        "positions": "learned" if args.get("decoder_learned_pos", False) else "sinusoidal",
        "scale_embeddings": not args.get("no_scale_embedding", False),
        "max_length": _read(args, "max_target_positions", "tokens_per_sample"),
        "tie_embeddings": tied,
        "adaptive_cutoffs": cutoffs,
        "adaptive_factor": int(factor),
        "tie_projections": bool(args.get("tie_adaptive_proj", False)),
        "norm_epsilon": 1e-5,
        **PLAIN,
    }


def _encoder_fields(args, state):
    off = _off("untie_weights_roberta", "encoder_normalize_before")
    _check(args, off | {"pooler_activation_fn": ("tanh",), "task": (_MASKED, _CLASSES)})
    at, classes = "encoder.sentence_encoder", 0
    if args.get("task") == _CLASSES:
        heads = [key for key in state if key.startswith("classification_heads.")]
        outs = [key for key in heads if key.endswith(".out_proj.weight")]
        if len(outs) != 1:
            raise ValueError(f"the checkpoint has {len(outs)} classification heads, not one")
        classes = len(state[outs[0]])
    return {
        "vocab_size": len(_weights(state, f"{at}.embed_tokens.weight")),
        "embed_dim": _read(args, "encoder_embed_dim"),
        "ffn_dim": _read(args, "encoder_ffn_embed_dim"),
        "attention_heads": _read(args, "encoder_attention_heads"),
        "encoder_layers": _depth(state, "encoder", at),
        "norm": "post",
        "activation": _activation({"activation_fn": "gelu"} | args),
        "norm_epsilon": 1e-5,
        "family": "roberta",
        "max_length": _read(args, "max_positions", "tokens_per_sample"),
        "num_classes": classes,
        "share_layers": 1,
        "exit_maps": False,
        "attention": "auto",
    }


def _weights(state, key):
    if key not in state:
        raise ValueError(f"the checkpoint has no {key}: do its settings describe its network?")
    return state[key]


def _one_vocabulary(sizes):
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the checkpoint has dictionaries of {sizes[0]} and {sizes[1]} entries: a run has one "
            "tokenizer for both sides, as fairseq-preprocess --joined-dictionary makes it"
        )


def _as_dict(found) -> dict:
    if isinstance(found, argparse.Namespace):
        return vars(found)
    return found if isinstance(found, dict) else {}
