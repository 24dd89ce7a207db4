"""The README.md of a network that was written for another library."""

import json
import shutil
import typing

from absl import logging

from layerdrop_jax.depth import card
from layerdrop_jax.models.params import hash_params
from layerdrop_jax.reports.run_plots import depth_sets
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.tasks.task import task_of


class Use(typing.NamedTuple):
    """How a model card says what a network is for, and how it is used.

    Attributes:
      library: that loads it, by the name of its package.
      pipeline: what Hugging Face calls the task; "" where it has no name.
      what: the kind of network.
      how: what one has to know before the code.
      code: lines of Python.
    """

    library: str
    pipeline: str
    what: str
    how: str
    code: tuple[str, ...]


def write_card(folder, run, record, layers, use: Use, command: str) -> None:
    """Writes what the network is, where it is from and how it is used, as ``README.md``.

    Args:
      folder: where the file goes.
      run: the run that the network is of.
      record: what `export_run` returns.
      layers: the layers kept of each stack.
      use: of the network's kind.
      command: what started it; "" leaves it out.
    """
    model, score = run.settings.model, task_of(run.settings).score
    stack, of = model.cut_stack, {name: f"{name} " if len(layers) > 1 else "" for name in layers}
    less = {name: len(kept) for name, kept in layers.items() if len(kept) < model.depth(name)}
    cut = " and ".join(
        f"from {model.depth(name)} to {n} {of[name]}layers" for name, n in less.items()
    )
    depth = " and ".join(f"{len(kept)} {of[name]}layers" for name, kept in layers.items())
    lines = [
        "---",
        f"library_name: {use.library}",
        *([f"pipeline_tag: {use.pipeline}"] if use.pipeline else []),
        "tags: [layerdrop]",
        "---",
        f"# {record['architecture']}, {depth}",
        "",
        f"{use.what} of {record['parameters']:,} parameters, "
        f"{f'cut {cut}' if less else 'written whole'} by layerdrop-jax.",
        "",
        "| | |",
        "|---|---|",
    ]
    for name in layers:
        kept = ", ".join(map(str, record[f"{name}_layers"]))
        how = f"{of[name]}layers chosen by" if of[name] else "chosen by"
        lines += [
            f"| {of[name]}layers, as numbered in the network trained first | {kept} |",
            f"| {how} | {record['chosen'][name]['strategy']} |",
        ]
    lines += [
        f"| text | data.dataset={run.config['data']['dataset']} |",
        f"| checkpoints, by step | {', '.join(map(str, run.steps))} |",
        f"| SHA-256 of the run's parameters | {hash_params(run.params)} |",
        *([f"| exit maps | {record['exit_maps']} |"] if "exit_maps" in record else []),
        f"| compared | {record['compared']} |",
        "",
        use.how,
        "",
        "```python",
        *use.code,
        "```",
    ]
    if depths := depth_sets([read_metrics(run.workdir)], score.key):
        unit = ", per token of this tokenizer," if score.key == "perplexity" else ""
        text = {"valid": "validation"}.get(score.depths, score.depths)
        lines += [
            "",
            f"{score.label[0].upper()}{score.label[1:]} of the {text} text{unit} by depth, as",
            "the run measured it, without fine-tuning:",
            "",
            f"| depth | layers | {score.label} |",
            "|---|---|---|",
        ]
        for numbers, (found,) in depths.items():
            here = list(numbers) == record[f"{stack}_layers"] and not less.keys() - {stack}
            said = ", ".join(map(str, numbers)) or "none"
            mark = " (this one)" if here else ""
            lines.append(f"| {len(numbers)}{mark} | {said} | {found[score.key]:,.2f} |")
    lines += _depth_card(folder, run)
    if command:
        lines += ["", "Written by:", "", "```", command, "```"]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _depth_card(folder, run) -> list[str]:
    """Copies the run's depth card, where ``--mode=card`` has written one of these parameters.

    Returns:
      what the README.md says of it.
    """
    written = run.workdir / card.FILE
    if not written.exists():
        return []
    if json.loads(written.read_text(encoding="utf-8")).get("network") != hash_params(run.params):
        logging.warning("%s is of other parameters, and stays behind", written)
        return []
    for name in (card.FILE, "card.md", "card.png"):
        if (run.workdir / name).exists():
            shutil.copy(run.workdir / name, folder)
    return [
        "",
        "[card.md](card.md) is the depth card of the run's network: with layers out, and whole.",
    ]
