"""What the config files share: every section with its defaults, and the choice of a variant."""

import ml_collections

# Stands for a number that training takes from the text when it starts, and then writes into the
# run's config.json; see layerdrop_jax/training/fitting.py.
FROM_TEXT = -1

# How to decode with fewer layers or bits: docs/decoding.md. Nothing is done by default.
FASTER_DECODING = {"draft": "", "draft_tokens": 4, "exit": "", "exit_depths": "", "quantize": ""}


def choose(variant, variants):
    """Builds the config of ``variant``; an unknown one is an error that lists the known ones.

    Args:
      variant: as in ``--config=configs/NAME.py:VARIANT``; None and "" mean ``paper``.
      variants: functions that return a config, by name.
    """
    variant = variant or "paper"
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}: it is one of {', '.join(variants)}")
    config = variants[variant]()
    return config.lock()


def _common(task):
    """Makes a config of the sections that every task has, with their defaults."""
    config = ml_collections.ConfigDict()
    config.task = task
    config.seed = 1
    config.drop = ml_collections.ConfigDict(
        {
            "sublayers": 0.0,
            "heads": 0.0,
            "ffns": 0.0,
            "schedule": "constant",
            "protect": "",
            "exact": False,
            "over_time": "constant",
            "over_steps": 4000,
            "rescale": False,
            "row_groups": 1,
            "score_units": 0,
            "score_rates": "",
            "score_rate": 0.003,
            "mode": "skip",
            "method": "layerdrop",
            "sets": "spread",
            "draws": 1,
            "smallest": False,
            "together": False,
            "share": 0.5,
            "teach": 0.5,
            "exit_loss": "",
            "exit_scale": 0.1,
        }
    )
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adam",
            "schedule": "inverse_sqrt",
            "rate": 5e-4,
            "min_rate": 0.0,
            "warmup_updates": 4000,
            "warmup_init_rate": 1e-7,
            "period_updates": 20000,
            "period_mult": 1.0,
            "period_shrink": 1.0,
            "power": 1.0,
            "momentum": 0.99,
            "beta1": 0.9,
            "beta2": 0.98,
            "epsilon": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "dropped_layers": "momentum",
            "moments": "float32",
        }
    )
    config.train = ml_collections.ConfigDict(
        {
            "steps": 30000,
            "accumulate": 1,
            "label_smoothing": 0.1,
            "log_every": 50,
            "eval_every": 1000,
            "mesh": "",
            "shard_parameters": False,
            "tracker": "tensorboard",
        }
    )
    config.checkpoint = ml_collections.ConfigDict({"every": 1000, "keep_last": 10, "average": 10})
    config.prune = ml_collections.ConfigDict(
        {
            "decoder": "every_other:0.5",
            "sample_rows": 64,
            "budget": 1000,
            "draws": 20,
            "seed": 1,
            "survives": 0.9,
            "prompt_tokens": 32,
            "new_tokens": 32,
            "batch": 16,
        }
    )
    config.init = ml_collections.ConfigDict(
        {"run": "", "layers": "", "moments": "anew", "distill": 0.0, "temperature": 1.0}
    )
    return config


def translation(dataset, source, target, architecture):
    """Makes a translation config with the reference's defaults, which variants change."""
    config = _common("translation")
    config.data = ml_collections.ConfigDict(
        {
            "dataset": dataset,
            "source": source,
            "target": target,
            "data_dir": "",
            "path": "",
            "seed": 0,
            "vocab_size": 32768,
            "batch_rows": 64,
            "source_length": 256,
            "target_length": 256,
            "max_length": 256,
            "workers": 0,
        }
    )
    config.model = ml_collections.ConfigDict(dict(architecture))
    for side in ("source", "target"):
        config.model[f"{side}_vocab_size"] = config.data.get_oneway_ref("vocab_size")
    config.drop.update({"encoder": 0.2, "decoder": 0.2})
    config.drop.update({"encoder_depths": "", "decoder_depths": ""})
    config.prune.encoder = "all"
    config.decode = ml_collections.ConfigDict(
        {
            "beam": 5,
            "length_penalty": 1.0,
            "max_length_a": 1.2,
            "max_length_b": 10,
            "min_length": 1,
            "no_repeat_ngram": 0,
            "unknown_penalty": 0.0,
            "normalize": True,
            "batch_tokens": 65536,
        }
        | FASTER_DECODING
    )
    return config


def _demo_training(config):
    """Sets 900 updates for the demo of an encoder-decoder."""
    config.optimizer.update(
        {
            "schedule": "cosine",
            "rate": 3e-3,
            "min_rate": 1e-7,
            "warmup_updates": 100,
            "warmup_init_rate": 1e-7,
            "period_updates": 800,
        }
    )
    config.train.update({"steps": 900, "accumulate": 1, "log_every": 20, "eval_every": 150})
    config.checkpoint.update({"every": 150, "keep_last": 2, "average": 1})


def demo(config):
    """Shrinks a config to minutes on two CPU cores: CLDR phrases, 12 + 6 layers, 64 wide."""
    config.data.update(
        {
            "dataset": "cldr",
            "path": "",
            "vocab_size": 1024,
            "batch_rows": 8,
            "source_length": 64,
            "target_length": 64,
            "max_length": 64,
            "workers": 0,
        }
    )
    config.model.update(
        {
            "encoder_layers": 12,
            "decoder_layers": 6,
            "embed_dim": 64,
            "ffn_dim": 128,
            "attention_heads": 4,
            "norm": "pre",  # twelve layers post-norm would need a long warm-up
            "dropout": 0.0,
            "dtype": "float32",
        }
    )
    _demo_training(config)
    # Small batches: on a CPU the caches of a beam should fit into the processor's.
    config.decode.update({"beam": 2, "max_length_a": 1.2, "max_length_b": 10, "batch_tokens": 4096})
    return config


def language_modelling(dataset, architecture):
    """Makes a language model's config with the reference's defaults, which variants change."""
    config = _common("language_modelling")
    config.data = ml_collections.ConfigDict(
        {
            "dataset": dataset,
            "data_dir": "",
            "path": "",
            "tokenizer": "word",
            "vocab_size": 267744,
            "batch_rows": 8,
            "length": 3072,
            "max_blocks": 0,
            "workers": 0,
        }
    )
    config.model = ml_collections.ConfigDict(dict(architecture))
    config.model.vocab_size = config.data.get_oneway_ref("vocab_size")
    config.drop.update({"decoder": 0.2, "decoder_depths": ""})
    config.train.label_smoothing = 0.0
    config.evaluate = ml_collections.ConfigDict(
        {"length": 3072, "context": 2560, "break_mode": "complete", "batch_rows": 4}
    )
    config.decode = ml_collections.ConfigDict(
        {
            "max_tokens": 128,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 0.9,
            "stop_at_eos": False,
            "seed": 1,
            "batch_rows": 16,
        }
        | FASTER_DECODING
    )
    return config


def from_text(config):
    """Leaves the sizes of vocabulary, rows and training to the text.

    This is for runs of minutes on two CPU cores.
    """
    config.data.vocab_size = FROM_TEXT
    for name in ("batch_rows", "length", "max_length", "source_length", "target_length"):
        if name in config.data:
            config.data[name] = FROM_TEXT
    config.data.workers = 0
    config.optimizer.update({"warmup_updates": FROM_TEXT, "period_updates": FROM_TEXT})
    config.train.update(
        {"steps": FROM_TEXT, "accumulate": 1, "log_every": FROM_TEXT, "eval_every": FROM_TEXT}
    )
    config.checkpoint.update({"every": FROM_TEXT, "keep_last": 2, "average": 1})


def encoder(task, architecture):
    """Makes a config of an encoder, pre-trained or fine-tuned, with the reference's optimizer."""
    config = _common(task)
    config.data = ml_collections.ConfigDict(
        {
            "dataset": "",
            "data_dir": "",
            "path": "",
            "vocab_size": 50265,
            "batch_rows": 256,
            "length": 512,
            "workers": 0,
        }
    )
    config.model = ml_collections.ConfigDict(dict(architecture))
    config.model.vocab_size = config.data.get_oneway_ref("vocab_size")
    config.drop.update({"encoder": 0.2, "encoder_depths": ""})
    del config.prune.decoder
    config.prune.encoder = "every_other:0.5"
    config.train.label_smoothing = 0.0
    config.checkpoint.update({"keep_last": 3, "average": 1})
    config.optimizer.update(
        {"schedule": "polynomial", "epsilon": 1e-6, "warmup_init_rate": -1.0, "min_rate": 0.0}
    )
    return config


def encoder_demo(config):
    """Shrinks an encoder's config to two CPU cores: 12 layers, 96 wide."""
    config.data.update({"vocab_size": 4096, "workers": 0})
    config.model.update(
        {
            "embed_dim": 96,
            "ffn_dim": 384,
            "attention_heads": 4,
            "encoder_layers": 12,
            "max_length": 256,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "dtype": "float32",
        }
    )
    config.checkpoint.update({"every": 150, "keep_last": 2})
    return config


def summarisation(dataset, architecture):
    """Makes a config of summaries or answers with the reference's defaults.

    Sources are cut at 400 tokens, and the targets of training at 192.
    """
    config = _common("summarisation")
    config.data = ml_collections.ConfigDict(
        {
            "dataset": dataset,
            "source": "source",
            "target": "target",
            "data_dir": "",
            "path": "",
            "vocab_size": 32768,
            "batch_rows": 64,
            "source_length": 800,
            "target_length": 192,
            "max_source": 400,
            "max_target": 192,
            "workers": 0,
        }
    )
    config.model = ml_collections.ConfigDict(dict(architecture))
    for side in ("source", "target"):
        config.model[f"{side}_vocab_size"] = config.data.get_oneway_ref("vocab_size")
    config.model.share_embeddings = "all"
    config.drop.update({"encoder": 0.2, "decoder": 0.2})
    config.drop.update({"encoder_depths": "", "decoder_depths": ""})
    config.prune.encoder = "all"
    config.evaluate = ml_collections.ConfigDict({"rouge_tokenizer": "porter"})
    config.decode = ml_collections.ConfigDict(
        {
            "beam": 5,
            "length_penalty": 1.0,
            "max_length_a": 0.0,
            "max_length_b": 200,
            "min_length": 1,
            "no_repeat_ngram": 3,
            "unknown_penalty": 0.0,
            "normalize": True,
            "batch_tokens": 65536,
        }
        | FASTER_DECODING
    )
    return config


def summaries_demo(config):
    """Shrinks a config to minutes on two CPU cores: functions to docstrings, 6 + 6 layers."""
    config.data.update(
        {
            "dataset": "pystdlib_summaries",
            "path": "",
            "vocab_size": 2048,
            "batch_rows": 8,
            "source_length": 200,
            "target_length": 44,
            "max_source": 160,
            "max_target": 32,
            "workers": 0,
        }
    )
    config.model.update(
        {
            "encoder_layers": 6,
            "decoder_layers": 6,
            "embed_dim": 96,
            "ffn_dim": 192,
            "attention_heads": 4,
            "norm": "pre",
            "dropout": 0.1,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "share_embeddings": "all",
            "dtype": "float32",
        }
    )
    _demo_training(config)
    # Small batches: on a CPU the caches of a beam should fit into the processor's.
    config.decode.update({"beam": 2, "min_length": 3, "max_length_b": 31, "batch_tokens": 4096})
    return config
