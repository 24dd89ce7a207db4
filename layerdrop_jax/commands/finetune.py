"""Training a run's network on, whole or cut to fewer layers, as a run of its own."""

import copy
import pathlib
from collections.abc import Sequence

from layerdrop_jax.core.strategy_table import parse_strategy
from layerdrop_jax.depth import strategies
from layerdrop_jax.depth.prune import cut_config
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.depth_settings import InitConfig
from layerdrop_jax.runs.folder import check_folder, check_output, is_fresh, read_config
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.training.fitting import fit
from layerdrop_jax.training.train import train

# Of a config's model: what a run that starts from another's network decides for itself.
OWN = ("num_classes", "pooler_dropout", "dropout", "attention_dropout", "activation_dropout")
OWN += ("drop_path", "drop_path_rows", "drop_block", "drop_block_size", "drop_connect")
OWN += ("dtype", "saved", "attention")

CUT = ("prune.encoder", "prune.decoder")  # what is kept is not cut once more


def finetune(
    workdir, output, *, flags, changes, command: str, config=None, given: Sequence[str] = ()
) -> str:
    """Trains a run's network further, in a folder of its own, with the layers that flags choose.

    The new run's config is that of the run; or, for another task, ``config``, which takes over what
    the network is (see `adopt`). ``changes`` change either one. A folder that was begun before
    goes on with the layers chosen then.

    Args:
      workdir: the run's folder, which stays as it is.
      output: the folder of the new run; "" is the run's name with -finetuned behind it.
      flags: a strategy by stack, see `strategies`; a stack without one stays whole.
      changes: values of the new run's config that differ from the old one's, "train.steps=500".
        Those of its section ``prune`` hold for the choice of layers too.
      command: what started it, for the report.
      config: the new run's config; None is that of the run.
      given: the keys of ``config`` that the user set by hand: each has to be read.

    Returns:
      the new run's folder.

    Raises:
      what `train` raises; ValueError: an ``output`` that was begun otherwise, a key that would not
        be read.
    """
    check_adopted(given)
    output = output or f"{str(workdir).rstrip('/')}-finetuned"
    check_output(output)
    if is_fresh(pathlib.Path(output)):
        config = _begin(workdir, output, flags, changes, config)
    else:
        begun = read_config(output)
        _check_begun(begun, workdir, output, flags)
        if config:
            config = fit(adopt(config, read_config(workdir)), output)
            for stack in InitConfig(**begun["init"]).chosen():
                config["model"][f"{stack}_layers"] = begun["model"][f"{stack}_layers"]
                config["prune"][stack] = begun["prune"][stack]
            config["model"]["share_layers"] = begun["model"]["share_layers"]
            config["init"] |= {name: begun["init"][name] for name in ("run", "layers")}
        config = settings_lib.change(config or begun, changes, tuple(begun))
    train(config, output, command=command, given=[*given, *(c.partition("=")[0] for c in changes)])
    return output


def check_adopted(given: Sequence[str]) -> None:
    """Raises a ValueError where a key was given that the run in --workdir decides.

    Args:
      given: dotted names of keys of the new run's config.
    """
    for key in given:
        section, _, name = key.partition(".")
        theirs = section == "model" and name not in OWN
        if theirs or key in ("data.vocab_size", "init.run", "init.layers", *CUT):
            raise ValueError(
                f"--config.{key} is given, but --mode=finetune takes that from the run in "
                "--workdir and its --encoder_layers or --decoder_layers: leave it out"
            )


def adopt(config: dict, begun: dict) -> dict:
    """Makes a config for training another run's network further.

    What decides the network's function is taken from that run; its noise, its head and everything
    else are the config's own.

    Args:
      config: the config of the run that starts.
      begun: the other run's config.

    Raises:
      ValueError: a config for a network of another kind.
    """
    if config["model"].keys() != begun["model"].keys():
        ours, theirs = (" and ".join(_stacks(c)) for c in (config, begun))
        raise ValueError(
            f"--config is for a network with {ours} layers, and the run has one with {theirs} "
            f"layers, trained for {begun['task']}"
        )
    model = begun["model"] | {name: config["model"][name] for name in OWN if name in begun["model"]}
    data = config["data"] | {"vocab_size": begun["data"]["vocab_size"]}  # its tokenizer's
    return copy.deepcopy({**config, "model": model, "data": data})


def _stacks(config):
    return [stack for stack in ("encoder", "decoder") if f"{stack}_layers" in config["model"]]


def _begin(workdir, output, flags, changes, config) -> dict:
    """Makes the config of a new run; refuses what it can before it looks for layers."""
    run = load_run(workdir, [change for change in changes if change.startswith("prune.")])
    wanted = strategies.wanted(run, flags)
    inherited = not config
    own = {name: config["init"][name] for name in ("moments", "distill")} if config else {}
    base = fit(adopt(config, run.config), tokenizer=run.tokenizer) if config else run.config
    config = {**base, "init": base["init"] | {"run": str(workdir), "layers": ""}}
    config = settings_lib.change(config, changes, tuple(config))
    settings_lib.parse(config)
    check_folder(pathlib.Path(output), config)
    protect = config["drop"]["protect"]
    said = any(change.startswith("drop.protect=") for change in changes)
    whole = all(strategy.name == "all" for strategy in wanted.values())
    if protect and inherited and not said and not whole:
        raise ValueError(
            f"drop.protect={protect!r} names layers of the whole network: say with "
            "--set=drop.protect=... which of those that stay are protected"
        )

    layers, _ = strategies.choose(run, wanted)
    config = cut_config(base, run.settings.model, layers)
    chosen = [f"{stack}:{','.join(map(str, kept))}" for stack, kept in layers.items()]
    config["init"] |= own | {"run": str(workdir), "layers": " ".join(chosen)}
    return settings_lib.change(config, changes, tuple(config))


def _check_begun(config, workdir, output, flags):
    """Raises a ValueError where a run was begun from another one, or with other layers."""
    begun = InitConfig(**config["init"])
    if not begun.run or pathlib.Path(begun.run).resolve() != pathlib.Path(workdir).resolve():
        raise ValueError(
            f"--output={output} holds a run that did not start from {workdir}: name another folder"
        )
    for stack, text in flags.items():
        if text is None:
            continue
        whole = tuple(range(config["model"].get(f"{stack}_layers", 0)))
        strategy, kept = parse_strategy(text), begun.chosen().get(stack, whole)
        if strategy.name == "explicit":
            same = strategy.value == kept
        else:  # a measured choice is not made again
            same = not isinstance(strategy.value, int) or strategy.value == len(kept)
        if not same:
            raise ValueError(
                f"--output={output} holds a run that began with the {stack} layers {kept}, which "
                f"--{stack}_layers={text} does not choose: name another folder"
            )
