"""A run's network, whole or cut, as a folder that another library loads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.depth import strategies
from layerdrop_jax.depth.prune import cut
from layerdrop_jax.files import write_json
from layerdrop_jax.interop import folders
from layerdrop_jax.models.params import count_params, hash_params, model_graph
from layerdrop_jax.reports.run_plots import depth_sets
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.folder import check_new, made_whole, original_layers
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import EOS, PAD, SPECIAL_SYMBOLS, UNK

# Of the largest logit. Both compute in float32, and add up in other orders.
TOLERANCE = 1e-4
ROWS, LENGTH = 2, 32  # of the tokens whose logits are compared


def export_run(
    workdir, output="", *, library: str = "huggingface", flags=None, changes=(), command: str = ""
) -> dict:
    """Writes a run's network as a folder of Hugging Face's: whole, pruned before, or cut now.

    The folder holds the weights, config.json, the tokenizer and README.md, a model card. Before it
    is put in place every number is read back and compared with the run's; where torch and
    transformers are installed, so are the logits that they compute.

    Args:
      workdir: a run's folder.
      output: the folder to make; "" is the run's name with -LIBRARY behind it.
      library: one of the ``exporters`` of the network's config.
      flags: a strategy by stack, see `strategies`; a stack without one stays whole.
      changes: what to do otherwise than the run's config says, see `settings.change`.
      command: what started it, for the card.

    Returns:
      ``output``, ``architecture``, ``parameters``, the layers by their numbers in the network that
      was trained first, how they were chosen, and ``compared``: what was.

    Raises:
      ValueError: the network has what the layout cannot hold; an ``output`` that is in use or among
        a run's own files; a folder that does not hold what it should.
      FileNotFoundError, OSError: not a run's folder, or a file that cannot be written.
    """
    output = check_new(output or f"{str(workdir).rstrip('/')}-{library}")
    run = load_run(workdir, changes)
    wanted = strategies.wanted(run, flags or {})
    run.settings.model.export_config(library)  # refused before layers are looked for
    layers, chosen = strategies.choose(run, wanted)
    config, params = cut(run, layers)
    model, params = settings.parse(config).model, jax.device_get(params)
    state = model.export_params(library, params)
    # A text begins with eos here, so it is the symbol that begins one there too.
    fields = model.export_config(library) | {
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    record = {
        "output": str(output),
        "architecture": fields["architectures"][0],
        "parameters": count_params(params),
        **{
            f"{stack}_layers": original_layers(run.workdir, stack, kept)
            for stack, kept in layers.items()
        },
        "chosen": chosen,
    }
    with made_whole(output) as partial:
        folders.write_state(partial, state)
        write_json(partial / "config.json", fields)
        _write_tokenizer(run, partial, model.max_length)
        record["compared"] = compare(partial, model, params, state)
        card = _card(run, record, layers, command)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return record


def compare(folder, model, params: dict, state: dict, order=None) -> str:
    """Checks that a folder of Hugging Face's holds the network that these parameters are.

    Args:
      folder: config.json and weights.
      model: the network's config.
      params: its parameters.
      state: the same in the folder's layout.
      order: the id that each id of the parameters has in the folder; None where ids are the same.

    Returns:
      what was compared, for a person.

    Raises:
      ValueError: a number differs, or a logit by more than TOLERANCE of the largest one.
    """
    found = folders.read_state(folder)
    for key, array in state.items():
        if key not in found or not np.array_equal(np.asarray(found[key], np.float32), array):
            raise ValueError(f"{folder}: {key} was not read back as it is in the run")
    every = f"all {sum(a.size for a in state.values()):,} numbers"
    if not folders.can_compute():
        return f"{every}, read back; not the logits: {' and '.join(folders.LIBRARIES)} are needed"
    draw = np.random.default_rng(1)
    ids_BxT = draw.integers(model.vocab_size, size=(ROWS, min(LENGTH, model.max_length)))
    theirs_BxTxV = folders.logits(folder, ids_BxT if order is None else order[ids_BxT])
    if order is not None:
        theirs_BxTxV = theirs_BxTxV[..., order]
    difference = _difference(model, params, ids_BxT, theirs_BxTxV)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{folder}: the logits that transformers computes differ by {difference:.1e} of the "
            "largest one: nothing was written"
        )
    return f"{every}, and logits by transformers, which differ by {difference:.1e} of the largest"


def _difference(model, params, ids_BxT, theirs_BxTxV) -> float:
    """Finds the largest difference of logits, as a share of the largest logit."""
    # In float32, whatever the type of the run: rounding would hide, or look like, a difference.
    graph = model_graph(dataclasses.replace(model, dtype="float32"))

    @jax.jit
    def run(params, ids_BxT):
        network = nnx.merge(graph, params)
        return network.logits(network(ids_BxT))

    with jax.default_matmul_precision("highest"):
        ours_BxTxV = np.asarray(run(params, jnp.asarray(ids_BxT, jnp.int32)))
    return float(np.max(np.abs(ours_BxTxV - theirs_BxTxV)) / np.max(np.abs(theirs_BxTxV)))


def _write_tokenizer(run, folder, max_length):
    """Writes the tokenizer so that a text gets the ids which this network reads: eos, then its."""
    content = json.loads((run.workdir / "tokenizer.json").read_text(encoding="utf-8"))
    eos = SPECIAL_SYMBOLS[EOS]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": eos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": eos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": eos, "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {eos: {"id": eos, "ids": [EOS], "tokens": [eos]}},
    }
    write_json(folder / "tokenizer.json", content, indent=1)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos,
        "eos_token": eos,
        "pad_token": SPECIAL_SYMBOLS[PAD],
        "unk_token": SPECIAL_SYMBOLS[UNK],
        "split_special_tokens": True,  # text that looks like a symbol is text
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    write_json(folder / "tokenizer_config.json", about)


def _card(run, record, layers, command) -> str:
    """Writes the model card: what the network is, where it is from, how a prompt begins."""
    depth, whole = (len(layers["decoder"]), run.settings.model.depth("decoder"))
    kept = ", ".join(map(str, record["decoder_layers"]))
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [layerdrop]",
        "---",
        f"# {record['architecture']}, {depth} layers",
        "",
        f"A language model of {record['parameters']:,} parameters, trained by layerdrop-jax and "
        + (f"cut from {whole} to {depth} layers." if depth < whole else "written whole."),
        "",
        "| | |",
        "|---|---|",
        f"| layers, as numbered in the network trained first | {kept} |",
        f"| chosen by | {record['chosen']['decoder']['strategy']} |",
        f"| text | data.dataset={run.config['data']['dataset']} |",
        f"| checkpoints, by step | {', '.join(map(str, run.steps))} |",
        f"| SHA-256 of the run's parameters | {hash_params(run.params)} |",
        f"| compared | {record['compared']} |",
        "",
        "A text begins with `</s>`, and so must a prompt; another `</s>` ends it. The tokenizer "
        "puts the first one there, unless it is called with `add_special_tokens=False`:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'model = AutoModelForCausalLM.from_pretrained(".")',
        'ids = tokenizer("a prompt", return_tensors="pt").input_ids',
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0]))",
        "```",
    ]
    key = "perplexity"
    if depths := depth_sets([read_metrics(run.workdir)], key):
        lines += [
            "",
            "Perplexity of the validation text, per token of this tokenizer, by depth, as",
        ]
        lines += ["the run measured it, without fine-tuning:", ""]
        lines += ["| depth | layers | perplexity |", "|---|---|---|"]
        for numbers, (found,) in depths.items():
            here = " (this one)" if list(numbers) == record["decoder_layers"] else ""
            said = ", ".join(map(str, numbers)) or "none"
            lines.append(f"| {len(numbers)}{here} | {said} | {found[key]:,.2f} |")
    if command:
        lines += ["", "Written by:", "", "```", command, "```"]
    return "\n".join(lines) + "\n"
