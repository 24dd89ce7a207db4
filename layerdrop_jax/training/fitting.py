"""What a config leaves to the text: sizes of vocabulary, rows and training that suit a small set.

A value of FROM_TEXT stands for what `fit` finds when training starts. It reads the training split
once, says what it found, and the run's config.json holds numbers alone; whoever continues the run
takes them from there. A value that is given stays, and the others are made to go with it.
"""

import collections
import copy
import dataclasses
import math
import pathlib
import tempfile

import jax
import numpy as np

from layerdrop_jax.data import labelled, streams, tokenizers
from layerdrop_jax.data.pairs import DataConfig, load_pairs
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.folder import is_fresh, read_config
from layerdrop_jax.symbols import SPECIAL_SYMBOLS

FROM_TEXT = -1
KEYS = (
    *("data.vocab_size", "data.batch_rows", "data.length", "data.max_length"),
    *("data.source_length", "data.target_length", "evaluate.length", "evaluate.context"),
    *("model.vocab_size", "model.source_vocab_size", "model.target_vocab_size"),
    *("model.num_classes", "optimizer.warmup_updates", "optimizer.period_updates"),
    *("train.steps", "train.eval_every", "train.log_every", "checkpoint.every"),
)
MOST_ENTRIES = 8192  # of a vocabulary
LEAST = 5  # times that a word, or two pieces of a merge, must occur to be an entry
SHORTEST_ROW = 64  # tokens, into which several sentences go
UPDATES = (300, 1500)  # fewest and most of a training
EPOCHS = 20  # passes over the text, where the updates allow them
TOKENS = (256, 1024)  # of a micro-batch


def fit(config, workdir=None, *, tokenizer=None) -> dict:
    """Puts numbers where a config leaves them to the text.

    Args:
      config: nested mappings. The values of KEYS may be FROM_TEXT, for a translation, a language
        model or a classification.
      workdir: a run's folder; one that was begun has the numbers already.
      tokenizer: that of the network that is trained further, where there is one.

    Returns:
      a copy without FROM_TEXT; the config itself where it leaves nothing open.

    Raises:
      what loading the training split raises; ValueError: the task takes nothing from its text.
    """
    flat = settings.flatten(config)
    left = [key for key in KEYS if flat.get(key) == FROM_TEXT]
    if not left:
        return config
    config = copy.deepcopy(dict(config))
    if workdir is not None and not is_fresh(pathlib.Path(workdir)):
        begun = settings.flatten(read_config(workdir))
        found = {key: begun[key] for key in left if key in begun}
    else:
        found = _find(config, left, tokenizer)
        if jax.process_index() == 0:
            said = ", ".join(f"{key}={number}" for key, number in found.items())
            print(f"from the text: {said}", flush=True)
    for key, number in found.items():
        section, name = key.split(".")
        config[section][name] = number
    return config


def check_numbers(config) -> None:
    """Raises a ValueError where a config leaves numbers to a text that is not going to be read."""
    flat = settings.flatten(config)
    left = [key for key in KEYS if flat.get(key) == FROM_TEXT]
    if left:
        raise ValueError(
            f"{', '.join(f'{key}={FROM_TEXT}' for key in left)}: the text is to say, and none is "
            "read here: give numbers by --config.SECTION.KEY, or the --workdir of a run that has "
            "begun"
        )


def _find(config, left, tokenizer) -> dict:
    known = settings.flatten(config)
    found = {}

    def value(key, otherwise):
        """Takes the number that is given, or else the one that suits, and remembers it."""
        found[key] = otherwise if key in left else known.get(key)
        return found[key]

    find = {
        "translation": _translation,
        "language_modelling": _language_model,
        "classification": _classification,
    }.get(config.get("task"))
    if find is None:
        raise ValueError(
            f"{left[0]}={FROM_TEXT}: the task {config.get('task')!r} takes nothing from its text; "
            "set it to a number"
        )
    units, rows_of_batch, accumulate = find(config, value, tokenizer)
    updates = math.ceil(units / (rows_of_batch * accumulate)) * EPOCHS
    steps = value("train.steps", min(max(updates, UPDATES[0]), UPDATES[1]))
    warmup = value("optimizer.warmup_updates", max(steps // 10, 1))
    value("optimizer.period_updates", max(steps - warmup, 1))
    every = value("train.eval_every", max(steps // 6, 1))
    value("train.log_every", max(steps // 50, 1))
    value("checkpoint.every", every)
    for side in ("", "source_", "target_"):
        value(f"model.{side}vocab_size", found["data.vocab_size"])
    return {key: found[key] for key in left if key in found}


def _translation(config, value, tokenizer):
    """Returns how many rows there are to train on, rows of a micro-batch, and micro-batches."""
    data = _data(DataConfig, config)
    pairs = load_pairs(data, "train")
    size, tokenizer = _vocabulary(config, tokenizers.train_tokenizer, pairs, tokenizer)
    value("data.vocab_size", size)
    encoded = tokenizers.encode_pairs(tokenizer, pairs, limits=(2**31, 2**31))
    lengths = [
        np.diff(offsets) + 1  # eos
        for offsets in (encoded.source_offsets, encoded.target_offsets)
    ]
    if not len(lengths[0]):
        raise ValueError(
            f"the training split of {data.dataset} has no pair with text on both sides"
        )
    model = config["model"]
    most = min(model["max_source_length"], model["max_target_length"])
    longest = value("data.max_length", _length(np.maximum(*lengths), most))
    row = max(longest, SHORTEST_ROW)
    means = [float(of_side.mean()) for of_side in lengths]
    # The side with more tokens has longer rows, so that neither is padding.
    for side, mean in zip(("source", "target"), means, strict=True):
        value(f"data.{side}_length", _up(row * max(mean / min(means), 1), 4))
    tokens = max(int(of_side.sum()) for of_side in lengths)
    rows = value("data.batch_rows", _rows(tokens, row))
    return max(tokens / row / max(means) * min(means), 1), rows, config["train"]["accumulate"]


def _language_model(config, value, tokenizer):
    data = _data(streams.StreamConfig, config)
    texts = streams.load_texts(data, "train")
    train = tokenizers.train_text_bpe if data.tokenizer == "bpe" else _train_words
    size, tokenizer = _vocabulary(config, train, texts, tokenizer)
    value("data.vocab_size", size)
    tokens, _ = tokenizers.encode_texts(tokenizer, texts)
    most = min(128, config["model"]["max_length"])
    row = value("data.length", min(max(2 ** int(math.log2(max(len(tokens) / 64, 1))), 16), most))
    window = value("evaluate.length", row)
    value("evaluate.context", window // 4)
    rows = value("data.batch_rows", _rows(len(tokens), row))
    return max(len(tokens) / row, 1), rows, config["train"]["accumulate"]


def _classification(config, value, tokenizer):
    data = _data(labelled.LabelledConfig, config)
    examples, names = labelled.load_training(data)
    texts = [text for example in examples for text in example.texts]
    size, tokenizer = _vocabulary(config, tokenizers.train_byte_bpe, texts, tokenizer)
    value("data.vocab_size", size)
    value("model.num_classes", max(len(names), 1))
    lengths = np.array([len(ids) for ids in tokenizers.encode(tokenizer, texts)])
    symbols = 2 * len(examples[0].texts)
    lengths = lengths.reshape(len(examples), -1).sum(axis=1) + symbols
    length = _length(lengths, config["model"]["max_length"])
    value("data.length", max(length, labelled.SHORTEST))
    rows = value("data.batch_rows", min(max(len(examples) // 40, 4), 32))
    return len(examples), rows, config["train"]["accumulate"]


def _data(kind, config):
    """Makes a section ``data`` that serves to load the text: its sizes are stand-ins."""
    numbers = {"vocab_size": 1024, "batch_rows": 1}
    fields = {field.name for field in dataclasses.fields(kind)} & set(config["data"])
    numbers |= dict.fromkeys((name for name in fields if name.endswith("length")), 8)
    numbers |= {"buckets": ""} if "buckets" in fields else {}  # they are checked with the length
    return kind(**config["data"] | numbers)


def _vocabulary(config, train, texts, tokenizer):
    """Trains a tokenizer, unless there is one; returns ``(entries, tokenizer)``.

    It has at most as many entries as the config gives, or else those frequent enough to be learned.
    """
    if tokenizer is not None:
        return tokenizer.get_vocab_size(), tokenizer
    given = config["data"]["vocab_size"]
    most, least = (MOST_ENTRIES, LEAST) if given == FROM_TEXT else (given, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.json"
        tokenizer = train(texts, most, path, least=least)
    return tokenizers.real_entries(tokenizer), tokenizer


def _train_words(texts, most, path, *, least):
    counts = collections.Counter(word for text in texts for word in text.split())
    words = sum(count >= least for count in counts.values())
    size = min(max(words, 1) + len(SPECIAL_SYMBOLS), most)
    return tokenizers.train_word_vocabulary(texts, size, path)


def _length(lengths, most: int) -> int:
    """Computes the tokens into which all but one text in a thousand fit, at most ``most``."""
    return min(_up(float(np.quantile(lengths, 0.999)), 8), most)


def _rows(tokens: int, row: int) -> int:
    """Computes the rows of a micro-batch: a fortieth of the text, within TOKENS."""
    return max(round(min(max(tokens / 40, TOKENS[0]), TOKENS[1]) / row), 1)


def _up(number: float, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple
