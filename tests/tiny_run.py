"""A config made from a real one that trains in seconds on text made here, and helpers around it."""

import json
import random

from configs import wmt

WORDS = {
    **{"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"},
    **{"six": "sechs", "seven": "sieben", "eight": "acht", "nine": "neun", "ten": "zehn"},
}
# No two sizes are equal, but that both sides share a vocabulary.
SIZES = {
    "data": {"vocab_size": 331, "batch_rows": 4, "max_length": 23}
    | {"source_length": 29, "target_length": 31},
    "model": {"embed_dim": 12, "ffn_dim": 17, "attention_heads": 3, "dropout": 0.1}
    | {"encoder_layers": 2, "decoder_layers": 4}
    | {"max_source_length": 37, "max_target_length": 41},
    "layerdrop": {"encoder": 0.2, "decoder": 0.3},
    "optimizer": {"rate": 0.02, "warmup_updates": 8, "period_updates": 52},
    "train": {"steps": 60, "accumulate": 2, "log_every": 1, "eval_every": 20},
    "checkpoint": {"every": 5, "keep_last": 3, "average": 1},
    "decode": {"beam": 2, "max_length_a": 1.0, "max_length_b": 2},
}


def write_text(folder, sizes=(("train", 97), ("valid", 11), ("test", 7))):
    """Parallel files of number words, translated word by word."""
    draw = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in sizes:
        lines = [draw.choices(list(WORDS), k=draw.randint(1, 5)) for _ in range(count)]
        for language, words in (("en", {word: word for word in WORDS}), ("de", WORDS)):
            text = "".join(" ".join(words[word] for word in line) + "\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")


def tiny_config(text, **sections):
    """configs/wmt.py:demo with small sizes, on the text in a folder; the sections override it."""
    config = wmt.demo().to_dict()
    own = {"data": {"dataset": "text", "path": str(text), "data_dir": str(text / "prepared")}}
    for changes in (SIZES, own, sections):
        for section, values in changes.items():
            config[section] |= values
    for side in ("source", "target"):
        config["model"][f"{side}_vocab_size"] = config["data"]["vocab_size"]
    return config


def write_config_file(path, config):
    """A file for --config, as one writes it by hand."""
    path.write_text(
        "import json\nimport ml_collections\n\ndef get_config(variant=None):\n"
        f"    return ml_collections.ConfigDict(json.loads({json.dumps(config)!r})).lock()\n"
    )
    return path
