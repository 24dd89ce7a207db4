"""A config made from a real one that trains in seconds on text made here, and helpers around it."""

import contextlib
import json
import os
import pathlib
import random
import signal

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from configs import cnn_dailymail, glue, llama, roberta, wikitext103, wmt
from layerdrop_jax.data import labelled, pairs
from layerdrop_jax.data.streams import save_texts
from layerdrop_jax.data.tokenizers import train_byte_bpe, train_text_bpe, train_tokenizer
from layerdrop_jax.models.params import make_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import CheckpointConfig, Checkpoints, write_params
from layerdrop_jax.runs.folder import read_config, write_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.step import train_step as state
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.training.progress_line import Window

# What the clock says: no two runs agree in it.
CLOCK = ("seconds", "data_wait", "words_per_second", "flops_per_second", "nominal_flops_per_second")
CLOCK += ("utilisation", "nominal_utilisation")

WORDS = {
    **{"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"},
    **{"six": "sechs", "seven": "sieben", "eight": "acht", "nine": "neun", "ten": "zehn"},
}
TRAINING = {
    "optimizer": {"rate": 0.01, "warmup_updates": 8, "period_updates": 52},
    "train": {"steps": 60, "accumulate": 2, "log_every": 1, "eval_every": 20},
    "checkpoint": {"every": 10, "keep_last": 3, "average": 1},
    "prune": {"sample_rows": 5, "budget": 20, "draws": 2}
    | {"prompt_tokens": 7, "new_tokens": 5, "batch": 3},
}
# No two sizes are equal, but that both sides share a vocabulary.
SIZES = TRAINING | {
    "data": {"vocab_size": 331, "batch_rows": 8, "max_length": 23}
    | {"source_length": 29, "target_length": 31},
    "model": {"embed_dim": 30, "ffn_dim": 37, "attention_heads": 3}
    | {"encoder_layers": 2, "decoder_layers": 4, "dropout": 0.05}
    | {"max_source_length": 41, "max_target_length": 43},
    "drop": {"encoder": 0.1, "decoder": 0.2},
    "decode": {"beam": 2, "max_length_a": 1.0, "max_length_b": 2},
}
SUMMARY_SIZES = {
    "data": {"source": "en", "target": "de", "max_source": 11, "max_target": 7},
    "decode": {"beam": 2, "min_length": 2, "max_length_a": 0.0, "max_length_b": 9},
}
LM_SIZES = TRAINING | {
    "data": {"vocab_size": 331, "batch_rows": 8, "length": 23},
    "model": {"embed_dim": 30, "ffn_dim": 37, "attention_heads": 3}
    | {"decoder_layers": 4, "dropout": 0.05, "max_length": 47}
    | {"adaptive_cutoffs": "101,211", "adaptive_factor": 3},
    "drop": {"decoder": 0.2},
    "evaluate": {"length": 29, "context": 11, "batch_rows": 5},
    "decode": {"max_tokens": 13, "batch_rows": 2},
}
LLAMA_SIZES = LM_SIZES | {
    "model": {"embed_dim": 30, "ffn_dim": 37, "attention_heads": 6, "kv_heads": 2, "head_dim": 4}
    | {"decoder_layers": 4, "dropout": 0.05, "max_length": 47},
}
MASKED_SIZES = TRAINING | {
    "data": {"vocab_size": 331, "batch_rows": 8, "length": 23},
    "model": {"embed_dim": 30, "ffn_dim": 37, "attention_heads": 3}
    | {"encoder_layers": 4, "dropout": 0.05, "max_length": 47},
    "drop": {"encoder": 0.2},
}
CLASSIFICATION_SIZES = MASKED_SIZES | {
    "data": {"vocab_size": 331, "batch_rows": 9, "length": 19},
    "model": MASKED_SIZES["model"] | {"num_classes": 3, "pooler_dropout": 0.1},
}
PAIRS = (("train", 199), ("valid", 11), ("test", 12))


def write_text(folder, sizes=PAIRS):
    """Writes parallel files of number words, translated word by word, for splits of given sizes.

    In ``train`` one pair is longer than `SIZES` allows, and one is empty.
    """
    draw = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in sizes:
        lines = [draw.choices(list(WORDS), k=draw.randint(1, 5)) for _ in range(count)]
        if split == "train":
            lines[7], lines[11] = ["one"] * 30, []
        for language, words in (("en", {word: word for word in WORDS}), ("de", WORDS)):
            text = "".join(" ".join(words[word] for word in line) + "\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    return folder


def tiny_config(text, **sections):
    """Makes configs/wmt.py:demo small, on `write_text`'s folder; the sections override it."""
    config = wmt.demo().to_dict()
    own = {"data": {"dataset": "text", "path": str(text), "data_dir": str(text / "prepared")}}
    for changes in (SIZES, own, sections):
        for section, values in changes.items():
            config[section] |= values
    for side in ("source", "target"):
        config["model"][f"{side}_vocab_size"] = config["data"]["vocab_size"]
    return config


def tiny_summary_config(text, **sections):
    """Makes configs/cnn_dailymail.py:demo small, as `tiny_config`: the longer sentences are cut."""
    config = cnn_dailymail.get_config("demo").to_dict()
    own = {"data": {"dataset": "text", "path": str(text), "data_dir": str(text / "prepared")}}
    for changes in (SIZES, SUMMARY_SIZES, own, sections):
        for section, values in changes.items():
            config[section] |= values
    del config["data"]["max_length"]
    for side in ("source", "target"):
        config["model"][f"{side}_vocab_size"] = config["data"]["vocab_size"]
    return config


def write_lines(folder, sizes=PAIRS):
    """Writes files of lines that count up from some word, for splits of given sizes."""
    draw, words = random.Random(1), list(WORDS)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in sizes:
        starts = [draw.randrange(len(words) - 1) for _ in range(count)]
        lines = [words[start : draw.randint(start + 1, len(words))] for start in starts]
        text = "".join(" ".join(line) + "\n" for line in lines)
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return folder


def tiny_lm_config(text, **sections):
    """Makes configs/wikitext103.py:demo small, as `tiny_config`, on `write_lines`' folder."""
    return _own_text(wikitext103.demo(), text, LM_SIZES, sections)


def tiny_llama_config(text, **sections):
    """Makes configs/llama.py:demo small, as `tiny_config`, on `write_lines`' folder."""
    return _own_text(llama.demo(), text, LLAMA_SIZES, sections)


def own_text(folder) -> list[str]:
    """Changes of a config: it has the files of `write_lines` instead of the standard library."""
    prepared = f"data.data_dir={folder / 'prepared'}"
    return ["data.dataset=text", f"data.path={folder}", prepared, "data.batch_rows=2"]


def write_untrained(folder, config, turn=lambda params: params):
    """Writes the folder of a run as its first parameters are, or ``turn`` makes of them.

    It is a language model's or a masked one's, on `write_lines`' folder, a classification's, on
    `write_labelled`'s, or an encoder-decoder's, on `write_text`'s.
    """
    parsed = settings_lib.parse(config)
    folder.mkdir(parents=True)
    if parsed.task == "classification":
        train, names = labelled.load_training(parsed.data)
        texts = [text for example in train for text in example.texts]
        for split in ("valid", "test"):
            examples = labelled.load_examples(parsed.data, split)
            labelled.save_examples(folder, split, examples)
        labelled.save_head(folder, labelled.Head(names, labelled.text_columns(parsed.data)))
    elif "encoder" in parsed.model.stacks and "decoder" in parsed.model.stacks:
        texts = pairs.load_pairs(parsed.data, "train")
        languages = parsed.data.source, parsed.data.target
        for split in ("valid", "test"):
            held_out = pairs.load_pairs(parsed.data, split)
            pairs.save_eval_text(folder, split, held_out, languages=languages)
    else:
        path = pathlib.Path(parsed.data.path)
        texts = (path / "train.txt").read_text().splitlines()
        for split in ("valid", "test"):
            save_texts(folder, split, (path / f"{split}.txt").read_text().splitlines())
    trainers = {"language_modelling": train_text_bpe, "translation": train_tokenizer}
    train = (trainers | {"summarisation": train_tokenizer}).get(parsed.task, train_byte_bpe)
    train(texts, parsed.data.vocab_size, folder / "tokenizer.json")
    write_params(folder / "checkpoints", 1, turn(make_params(parsed.model, config["seed"])))
    write_config(folder, config)
    return folder


def tiny_masked_config(text, **sections):
    """Makes configs/roberta.py:demo small, as `tiny_config`, on `write_lines`' folder."""
    return _own_text(roberta.demo(), text, MASKED_SIZES, sections)


def with_exit_maps(params):
    """Draws the exit maps of every stack, which begin as nothing."""
    draw = np.random.default_rng(1)

    def drawn(path, a):
        of_map = any(part.key == "exit_map" for part in path)
        return draw.normal(0, 0.1, a.shape).astype(np.float32) if of_map else a

    return jax.tree_util.tree_map_with_path(drawn, params)


LABELS = ("high", "low", "middle")  # of `write_labelled`, in alphabetical order


def write_labelled(folder, sizes=PAIRS, *, texts=1, numbers=False, header="label"):
    """Writes dev.tsv and so on: texts of number words, labelled by how high their first word is.

    Args:
      folder: the folder to write to.
      sizes: how many examples each split has.
      texts: how many a line has, 1 or 2; the second is the rest of the words.
      numbers: whether the labels are numbers, 0.1 to 1, in a column ``score``.
      header: the name of the column with labels.
    """
    draw, words = random.Random(1), list(WORDS)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["one", "two"][:texts]
    for split, count in sizes:
        lines = ["\t".join(["score" if numbers else header, *names])]
        for _ in range(count):
            first = draw.randrange(len(words))
            rest = draw.choices(words, k=draw.randint(1, 4))
            label = (first + 1) / 10 if numbers else ("low", "middle", "high")[first * 3 // 10]
            cut = " " if texts == 1 else "\t"
            lines.append(f"{label}\t{words[first]}{cut}{' '.join(rest)}")
        name = {"valid": "dev"}.get(split, split)
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_classification_config(text, **sections):
    """Makes configs/glue.py:demo small, as `tiny_config`, on `write_labelled`'s folder."""
    return _own_text(glue.demo(), text, CLASSIFICATION_SIZES, sections, dataset="tsv")


def _own_text(config, text, sizes, sections, *, dataset="text"):
    config = config.to_dict()
    own = {"data": {"dataset": dataset, "path": str(text), "data_dir": str(text / "prepared")}}
    for changes in (sizes, own, sections):
        for section, values in changes.items():
            config[section] |= values
    config["model"]["vocab_size"] = config["data"]["vocab_size"]
    return config


def write_config_file(path, config):
    """Writes a file for --config, like one written by hand."""
    path.write_text(
        "import json\nimport ml_collections\n\n\ndef get_config(variant=None):\n"
        f"    return ml_collections.ConfigDict(json.loads({json.dumps(config)!r})).lock()\n"
    )
    return path


@contextlib.contextmanager
def quick_compile(cache):
    """Compiles with few optimisations, and keeps what is compiled in the folder ``cache``.

    Compiling is nearly all of the time of a small run. Processes started here do the same with
    `quick_environment`.
    """
    options = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}
    _configure(options)
    try:
        yield
    finally:
        _configure(before)


def _configure(options):
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def quick_environment(cache):
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def train_lines(run):
    """Reads the lines of training steps, without what the clock says."""
    return [
        {name: value for name, value in record.items() if name not in CLOCK}
        for record in read_metrics(run)
        if record["kind"] == "train"
    ]


def interrupt_once(monkeypatch, run, *, lines):
    """Interrupts, as Ctrl-C does, when a run's metrics have so many lines of training steps."""
    add, interrupts = Window.add, []

    def add_and_interrupt(window, sums):
        add(window, sums)
        if not interrupts and len(train_lines(run)) == lines:
            interrupts.append(os.kill(os.getpid(), signal.SIGINT))

    monkeypatch.setattr(Window, "add", add_and_interrupt)


def last_checkpoint(run):
    """Restores the last checkpoint: (step, state, state of the data iterator)."""
    settings = settings_lib.parse(read_config(run))
    optimizer, _ = make_optimizer(settings.optimizer)
    abstract = jax.eval_shape(
        lambda: state.make_state(
            settings.model, make_params(settings.model, 0), optimizer, settings.drop, 0
        )
    )
    checkpoints = Checkpoints(
        run / "checkpoints", CheckpointConfig(every=1, keep_last=9, average=1)
    )
    restored = checkpoints.restore_latest(abstract)
    checkpoints.close()
    return restored.step, restored.state, restored.iterator_state


def assert_same_end(run, other):
    """Asserts bitwise the same parameters, moments, step, place in the data, and metrics."""
    (step, tree, place), (other_step, other_tree, other_place) = map(last_checkpoint, (run, other))
    assert (step, place) == (other_step, other_place)
    jax.tree.map(np.testing.assert_array_equal, tree, other_tree)
    assert train_lines(run) == train_lines(other)
