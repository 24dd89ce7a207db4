"""Training that starts from a run's network, whole or cut: its weights, moments and tokenizer."""

import pathlib
import typing

import jax

from layerdrop_jax.core.pruning import check_layers
from layerdrop_jax.files import write_json
from layerdrop_jax.models.cut import cut_model, take_rows
from layerdrop_jax.models.encoder import HEADS
from layerdrop_jax.models.params import abstract_params, first_difference, hash_params, make_params
from layerdrop_jax.runs.checkpoints import restore_state
from layerdrop_jax.runs.folder import PRUNED, original_layers, read_pruned
from layerdrop_jax.runs.run import Run, load_run
from layerdrop_jax.runs.settings import Settings
from layerdrop_jax.step.optimizers import carry_moments, make_optimizer
from layerdrop_jax.step.train_step import make_state
from layerdrop_jax.tasks.task import keeps_head


class Origin(typing.NamedTuple):
    """Where training starts from: a run, its layers that are kept, and the weights of these."""

    run: Run
    layers: dict
    params: dict


def load_origin(settings: Settings) -> Origin | None:
    """Loads what the section ``init`` of a config names; None where training starts from nothing.

    Raises:
      ValueError: the network that is left is not the one that the config describes.
      FileNotFoundError, OSError: the run cannot be read.
    """
    init, model = settings.init, settings.model
    if not init.run:
        return None
    run = load_run(init.run)
    chosen, theirs = init.chosen(), run.settings.model
    if unknown := chosen.keys() - theirs.stacks.keys():
        raise ValueError(f"init.layers: the model of {init.run} has no {min(unknown)}")
    layers = {stack: tuple(range(theirs.depth(stack))) for stack in theirs.stacks} | chosen
    for stack, kept in layers.items():
        try:
            check_layers(kept, theirs.depth(stack))
        except ValueError as error:
            raise ValueError(f"init.layers, {stack}: {error}") from None
    _, rows = cut_model(theirs, layers)
    params = take_rows(run.params, rows)
    if not keeps_head(run.config, settings):
        if init.distill:
            raise ValueError(
                f"init.distill={init.distill}: the network of {init.run} has another head than "
                "this config's, so it cannot be its teacher"
            )
        if init.moments != "anew":
            raise ValueError(
                f"init.moments={init.moments!r}: the network of {init.run} has another head than "
                "this config's, and so other moments; use init.moments=anew"
            )
        fresh = make_params(model, settings.seed)
        params = {name: params[name] for name in params if name not in HEADS}
        params |= {name: fresh[name] for name in fresh if name in HEADS}
    if said := first_difference(params, abstract_params(model)):
        raise ValueError(
            f"init.run={init.run} does not fit this config's model: {said}; see --mode=finetune, "
            "which makes the config"
        )
    return Origin(run, layers, params)


def carry_over(origin: Origin, settings: Settings) -> tuple[dict, list[int]]:
    """Takes the parameters of the first state, and its moments if asked, from the origin.

    Returns:
      ``(entries, steps)``; the steps are those of the checkpoints that the weights come from.

    Raises:
      ValueError: moments that the run does not have, or that are another optimizer's.
    """
    if settings.init.moments == "anew":
        return {"params": origin.params}, origin.run.steps
    theirs = origin.run.settings
    if theirs.optimizer.name != settings.optimizer.name:
        raise ValueError(
            f"init.moments='prune' takes over the moments of {theirs.optimizer.name}, but "
            f"optimizer.name={settings.optimizer.name!r}: use init.moments=anew"
        )
    abstract = jax.eval_shape(
        lambda: make_state(
            theirs.model,
            make_params(theirs.model, theirs.seed),
            make_optimizer(theirs.optimizer)[0],
            theirs.drop,
            theirs.seed,
        )
    )
    try:
        step, state = restore_state(origin.run.workdir / "checkpoints", abstract)
    except ValueError as error:
        raise ValueError(f"{error}; init.moments=anew starts without its moments") from None
    # The moments are those of the last checkpoint, and so the weights are too.
    _, rows = cut_model(theirs.model, origin.layers)
    fresh = make_optimizer(settings.optimizer)[0].init(origin.params)
    moments = carry_moments(take_rows(state["optimizer"], rows), fresh)
    return {"params": take_rows(state["params"], rows), "optimizer": moments}, [step]


def write_numbers(origin: Origin, steps, workdir: pathlib.Path) -> None:
    """Writes pruned.json: the numbers that the layers have in the network first trained."""
    workdir.mkdir(parents=True, exist_ok=True)
    record = {
        "origin": str(origin.run.workdir),
        "origin_sha256": hash_params(origin.run.params),
        "origin_steps": list(steps),
        **{
            f"{stack}_layers": original_layers(origin.run.workdir, stack, kept)
            for stack, kept in origin.layers.items()
        },
    }
    write_json(workdir / PRUNED, record)


def check_same(origin: Origin, workdir: pathlib.Path) -> None:
    """Raises a ValueError where a run goes on with another teacher than it was started with."""
    started = (read_pruned(workdir) or {}).get("origin_sha256")
    if started != hash_params(origin.run.params):
        raise ValueError(
            f"the network of {origin.run.workdir} is not the one that {workdir} was started with: "
            "it has been trained further; use another --workdir"
        )
