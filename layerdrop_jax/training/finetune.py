"""Training a run's network on, whole or cut to fewer layers, as a run of its own."""

from layerdrop_jax.training import settings as settings_lib
from layerdrop_jax.training import strategies
from layerdrop_jax.training.prune import cut
from layerdrop_jax.training.runs import load_run
from layerdrop_jax.training.train import train


def finetune(workdir, output, *, flags, changes, command: str) -> str:
    """Trains the network of a run on, in a folder of its own, with the layers that flags choose.

    Args:
      workdir: the run's folder, which stays as it is.
      output: the folder of the new run; trained on where it was, if it exists. "" is the run's name
        with -finetuned behind it.
      flags: a strategy by stack, see `strategies`; a stack without one stays whole.
      changes: values of the new run's config that differ from the old one's, "train.steps=500".
      command: what started it, for the report.

    Returns:
      the new run's folder.

    Raises:
      what `train` raises.
    """
    output = output or f"{str(workdir).rstrip('/')}-finetuned"
    run = load_run(workdir)
    whole = dict.fromkeys(run.settings.model.stacks, "all")
    layers, _ = strategies.choose(run, strategies.wanted(run, flags, whole))
    config, _ = cut(run, layers)
    chosen = [f"{stack}:{','.join(map(str, kept))}" for stack, kept in layers.items()]
    config["init"] |= {"run": str(workdir), "layers": " ".join(chosen)}
    train(settings_lib.change(config, changes, tuple(config)), output, command=command)
    return output
