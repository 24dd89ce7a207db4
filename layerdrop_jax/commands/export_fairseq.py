"""A run's network as a checkpoint of the reference's (fairseq), with its dictionaries."""

import json

from layerdrop_jax.commands.export_card import Use
from layerdrop_jax.data import labelled
from layerdrop_jax.files import write_atomically
from layerdrop_jax.interop import fairseq, fairseq_files, folders
from layerdrop_jax.symbols import MASK, SPECIAL_SYMBOLS


def write(folder, run) -> tuple[dict, Use]:
    """Fills a folder with a checkpoint, its dictionaries and the tokenizer, and reads it back.

    Args:
      folder: where the files go.
      run: the run, its layers already cut.

    Returns:
      what a record says of it, and its `Use`.

    Raises:
      ValueError: the network has what the reference does not; an entry with white space, which a
        dictionary cannot hold; a number or a setting that was not read back.
    """
    model, data = run.settings.model, run.settings.data
    args, state = model.export_config("fairseq"), model.export_params("fairseq", run.params)
    pairs = model.stacks.keys() >= {"encoder", "decoder"}
    languages = (data.source, data.target) if pairs else ()
    args |= dict(zip(("source_lang", "target_lang"), languages))
    fairseq_files.write(folder / fairseq_files.CHECKPOINT, args, state)
    entries = "".join(f"{name} 1\n" for name in _entries(run.tokenizer))
    for name in [f"dict.{language}.txt" for language in languages] or ["dict.txt"]:
        write_atomically(folder / name, entries)
    text = (run.workdir / "tokenizer.json").read_text(encoding="utf-8")
    write_atomically(folder / "tokenizer.json", text)
    if getattr(model, "num_classes", 0) > 1:
        labels = "".join(f"{name} 1\n" for name in labelled.load_labels(run.workdir))
        write_atomically(folder / fairseq_files.LABELS, labels)

    found, there = fairseq_files.read(folder / fairseq_files.CHECKPOINT)
    every = folders.compare_numbers(folder, fairseq.uniform(state), there)
    for name, value in fairseq_files.fields(found, there).items():
        # Layers that share weights are written each.
        if name not in ("share_layers", *_UNSAID) and value != getattr(model, name):
            raise ValueError(f"{folder}: model.{name}={getattr(model, name)!r} reads {value!r}")
    compared = f"{every} and the settings, read back; not the logits: fairseq does not run here"
    return {"architecture": args["arch"], "compared": compared}, _use(run, args)


# What a checkpoint does not hold where it means nothing: a width that is the default, or bands.
_UNSAID = ("kv_heads", "head_dim", "rope_theta", "adaptive_factor", "tie_projections", "family")


def _entries(tokenizer) -> list[str]:
    """Lists what a dictionary holds: all entries but the four symbols, and `<mask>`."""
    names = [tokenizer.id_to_token(n) for n in range(tokenizer.get_vocab_size())]
    names = names[len(SPECIAL_SYMBOLS) :]
    names = names[:-1] if names[-1] == MASK else names
    for name in names:
        if len(name.split()) != 1:
            raise ValueError(f"the entry {name!r} of the tokenizer is no word of a dict.txt")
    return names


def _use(run, args) -> Use:
    task, word_level = args["task"], json.loads(run.tokenizer.to_str())["model"]["type"]
    pieces = "words" if word_level == "WordLevel" else "pieces that tokenizer.json makes of it"
    return Use(
        "fairseq",
        "",
        {
            "translation": "An encoder-decoder",
            "language_modeling": "A language model",
            "masked_lm": "A masked language model",
        }.get(task, "A classifier"),
        f"Ids are those of the dictionary beside it, and text is read as {pieces}, with spaces "
        "between them:",
        (
            "import tokenizers",
            "from fairseq import checkpoint_utils",
            "",
            'tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")',
            "tokenizer.encode_special_tokens = True",
            'line = " ".join(tokenizer.encode("a line", add_special_tokens=False).tokens)',
            "models, _, task = checkpoint_utils.load_model_ensemble_and_task(",
            f'    ["{fairseq_files.CHECKPOINT}"], arg_overrides={{"data": "."}}',
            ")",
            "ids = task.source_dictionary.encode_line(line, add_if_not_exist=False)",
        ),
    )
