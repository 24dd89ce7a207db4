"""Training, from a config and a folder to checkpoints and a report; a run resumes by itself."""

import contextlib
import functools
import math
import os
import pathlib
import signal
import threading
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from layerdrop_jax.data import checksums, pipeline
from layerdrop_jax.data.workers import WorkerDied
from layerdrop_jax.models.fused_attention import choose_attention
from layerdrop_jax.models.params import count_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import Checkpoints, saved_steps
from layerdrop_jax.runs.folder import PRUNED, check_folder, held, is_fresh, write_config
from layerdrop_jax.runs.metrics import MetricWriter, check_scored, perplexity
from layerdrop_jax.runs.trackers import check_tracker
from layerdrop_jax.step import rate_scores, sharding
from layerdrop_jax.step.dropping import describe_rates
from layerdrop_jax.training import memory, origin, program
from layerdrop_jax.training.fitting import fit
from layerdrop_jax.training.hardware import hardware, peak_flops
from layerdrop_jax.training.progress_line import Progress, Window

STEPS_BETWEEN_AGREEMENTS = 10  # of many hosts, on whether one of them was told to stop


class Interrupted(Exception):
    """SIGTERM or Ctrl-C: everything is saved, and the same command goes on from here."""

    later = True  # for the command line: the same command goes on


def train(config, workdir, *, command: str, given: Sequence[str] = ()) -> None:
    """Trains to ``train.steps``, from the last checkpoint in ``workdir`` where there is one.

    Args:
      config: mapping with the sections of `settings.Settings`.
      workdir: the run's folder, made if need be.
      command: what started it, for the report.
      given: the keys of ``config`` that the user set by hand: each has to be read.

    Raises:
      ValueError: a bad config, or one that does not fit the run found in ``workdir``; a key given
        that nothing would read.
      FloatingPointError: the loss is not finite; names the step and the checkpoint kept.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
      WorkerDied: one of data.workers died; on a single host the state is saved.
      OSError: the folder cannot be written.
    """
    config = fit(config, workdir)
    settings = settings_lib.parse(config)
    settings_lib.check_read(given, settings)
    check_tracker(settings.train.tracker)
    workdir = pathlib.Path(workdir)
    check_folder(workdir, config)  # before anything is written
    with held(workdir):
        _train(settings, config, workdir, command)


def _train(settings, config, workdir, command):
    plan = program.make_plan(settings, sharding.make_mesh(settings.train.mesh))
    task, mesh, layout = plan.task, plan.mesh, plan.layout
    check_folder(workdir, config)  # it may have been another's while this one waited
    memory.check_state(plan.state, layout)  # before data is read or anything is allocated
    begins, fresh = not saved_steps(workdir / "checkpoints"), is_fresh(workdir)
    if begins and jax.process_index() == 0:
        checksums.unseal(workdir)  # what a start that failed has left may be written anew
    beginning = origin.load_origin(settings) if begins or settings.init.distill else None
    taken = {}
    if beginning and begins:
        taken, steps = origin.carry_over(beginning, settings)
        if jax.process_index() == 0:
            origin.write_numbers(beginning, steps, workdir)
    elif begins and jax.process_index() == 0 and (workdir / PRUNED).exists():
        (workdir / PRUNED).unlink()  # of a start that failed
    elif beginning:
        origin.check_same(beginning, workdir)

    # Data
    rows, valid_rows = task.prepare(settings, workdir)
    if jax.process_index() == 0:  # the last thing that a start writes: now the folder is a run's
        write_config(workdir, config)
    fingerprint = task.fingerprint(rows)
    batches = pipeline.train_iterator(
        settings.data,
        rows,
        seed=settings.seed,
        accumulate=settings.train.accumulate,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    # The step, and whether it fits
    teacher = None
    if settings.init.distill:
        params = beginning.run.params
        teacher = sharding.put(params, program.teacher_layout(plan, params))
    with _begun_only_if_it_fits(workdir, fresh):
        pipeline.check_update(settings.data, rows, accumulate=settings.train.accumulate)
        step_for = program.make_train_steps(plan, beginning)
        memory.check_step(step_for(task.row(settings)))
    state = jax.jit(plan.start, out_shardings=layout)()
    valid_step = program.make_valid_step(settings)
    rates_of = jax.jit(functools.partial(rate_scores.rates, drop=settings.drop))
    print(f"{count_params(state['params']):,} parameters on {mesh.size} device(s)")
    print(*describe_rates(settings), sep="\n")
    print("attention: {}: {}".format(*choose_attention(settings.model)), flush=True)

    # Restore
    state |= {name: sharding.put(tree, layout[name]) for name, tree in taken.items()}
    checkpoints = Checkpoints(workdir / "checkpoints", settings.checkpoint)
    restored = checkpoints.restore_latest(state)
    step = 0
    if restored is not None:
        if restored.metadata["rows"] != fingerprint:
            raise ValueError(
                f"the training sentences are not those that {workdir} was started with: "
                "data.path or data.data_dir holds other text now; use another --workdir"
            )
        step, state = restored.step, restored.state
        batches.set_state(restored.iterator_state)
        print(f"resuming {workdir} at step {step:,}", flush=True)
    # -1: a start that was killed before its first checkpoint has left lines of step 0.
    named = {"tracker": settings.train.tracker, "config": config}
    writer = MetricWriter(workdir, step=-1 if restored is None else step, **named)
    if restored is None:
        writer.write("start", 0, {"command": command, "hardware": hardware()})
        writer.write("data", 0, rows.stats)

    def save(step, **about):
        scores = _learned_scores(state, settings.drop)
        metadata = {"rows": fingerprint} | scores
        checkpoints.save(step, state, batches.get_state(), metadata=metadata, **about)

    # Loop
    last = settings.train.steps
    peak = mesh.size * peak_flops(settings.model.dtype)
    window = Window()
    stopping = False
    counted = task.score.counted.split()[-1]
    with (
        contextlib.closing(batches),
        contextlib.closing(writer),
        _signals() as stop,
        Progress(last, start=step, counted=counted) as progress,
    ):
        metrics = None
        while step < last and not stopping:
            try:
                with window.waiting():
                    batch = next(batches)
            except WorkerDied:
                if step and jax.process_count() == 1:  # saving is something that all do together
                    if metrics is not None:
                        _check_finite(metrics, step, checkpoints)
                    save(step, passing=True)
                checkpoints.close()
                raise
            train_step = step_for({name: array[0, 0] for name, array in batch.items()})
            batch = sharding.shard_rows(batch, mesh, axis=1)
            with jax.set_mesh(mesh):  # around nothing else: some of the rest is done by one process
                previous, (state, metrics) = metrics, train_step(state, batch, teacher)
            step += 1
            window.add(metrics)
            # The step before is done, or nearly: looking at it does not hold up this one.
            if previous is not None:
                _check_finite(previous, step - 1, checkpoints)
            stopping = _agree_to_stop(stop, step)
            log = step % settings.train.log_every == 0
            validate = step % settings.train.eval_every == 0 or step == last
            in_turn = validate or step % settings.checkpoint.every == 0
            if log or in_turn or stopping:
                _check_finite(metrics, step, checkpoints)
            if log or step == last or stopping:
                numbers = _numbers(task, window.close(), plan.learning_rate(step - 1), peak)
                drawn = step * settings.train.accumulate * settings.drop.row_groups
                numbers |= _depths(state["layers_run"], drawn)
                numbers |= _learned_rates(rates_of, state)
                _log(numbers, step, writer, progress)
            valid_loss = None
            if validate:
                with progress.paused(), window.paused():
                    valid = _validate(valid_step, state["params"], settings, valid_rows, mesh)
                watched, best = task.score.watch(valid)
                valid_loss = valid[watched] if best is min else -valid[watched]
                valid |= _with_perplexity(task, valid["loss"])
                writer.write("valid", step, valid)
                shown = ", ".join(f"{name} {value:.4f}" for name, value in valid.items())
                progress.print(f"step {step:,}: valid {shown}")
            if in_turn or stopping:
                save(step, valid_loss=valid_loss, passing=not in_turn)
        checkpoints.close()
    if stopping or stop.is_set():  # in the last step too: evaluation is not wanted now
        raise Interrupted(
            f"stopped at step {step:,} and saved it in {workdir}; "
            "the same command goes on from there"
        )


@contextlib.contextmanager
def _begun_only_if_it_fits(workdir, fresh):
    """Undoes the start of a new run that is refused inside, so that another config may follow."""
    try:
        yield
    except ValueError:
        if fresh and jax.process_index() == 0:
            (workdir / "config.json").unlink(missing_ok=True)
            checksums.unseal(workdir)
        raise


def _agree_to_stop(stop, step) -> bool:
    """Says whether to save and leave after this step; on many hosts, whether any was told to."""
    if jax.process_count() == 1:
        return stop.is_set()
    # All hosts ask at the same steps, since saving is something they do together.
    if step % STEPS_BETWEEN_AGREEMENTS:
        return False
    return bool(multihost_utils.process_allgather(np.array(stop.is_set())).any())


def _validate(valid_step, params, settings, rows, mesh) -> dict:
    """Averages a task's sums over the validation split, all layers running; ``loss`` is in nats."""
    batches = pipeline.eval_batches(
        settings.data,
        rows,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with jax.set_mesh(mesh):
        found = [valid_step(params, sharding.shard_rows(batch, mesh, axis=0)) for batch in batches]
    sums, counts = zip(*jax.device_get(found), strict=True)
    count = np.sum(counts, dtype=np.float64)
    check_scored(count, "valid", "no token or example of it counts")
    return {name: float(np.sum([s[name] for s in sums], dtype=np.float64) / count)
            for name in sums[0]}  # fmt: skip


def _with_perplexity(task, nats) -> dict:
    """Computes ``{"perplexity": ...}`` of a mean in nats; {} for a task without perplexity."""
    return {"perplexity": perplexity(nats)} if task.score.perplexity else {}


def _check_finite(metrics, step, checkpoints):
    loss, grad_norm, param_norm = (float(metrics[n]) for n in ("loss", "grad_norm", "param_norm"))
    if not all(map(math.isfinite, (loss, grad_norm, param_norm))):
        checkpoints.close()
        kept = checkpoints.latest_step()
        raise FloatingPointError(
            f"step {step:,} has a loss of {loss}, a gradient of norm {grad_norm} and leaves "
            f"parameters of norm {param_norm}: training stops; "
            + (
                "nothing was saved yet"
                if kept is None
                else f"the checkpoint of step {kept:,} is kept"
            )
            + ". In a new --workdir, a lower optimizer.rate, a longer warm-up or "
            "optimizer.clip_norm may help"
        )


def _numbers(task, sums, rate, peak):
    """Computes what a line of the log says of the steps since the line before.

    Args:
      task: the run's `Task`.
      sums: from `Window.close`.
      rate: the learning rate.
      peak: FLOPs a second that would be a utilisation of 1.
    """
    tokens, steps, seconds = sums["tokens"], sums["steps"], sums["seconds"]
    # Of a few short rows a masked language model may have had nothing to find.
    added = [name for name in ("loss", "nll", "cut_nll") if name in sums]
    mean = {name: sums[name] / tokens if tokens else math.nan for name in added}
    cut = {}
    if "cut_nll" in mean:
        nats = mean["cut_nll"]
        cut = {f"cut_{name}": value for name, value in _with_perplexity(task, nats).items()}
        cut = {"cut_nats": nats, **cut}
    numbers = {
        "loss": mean["loss"],
        "nats": mean["nll"],  # without label smoothing, as validation has it
        **_with_perplexity(task, mean["nll"]),
        **cut,
        "lr": float(rate),
        "words_per_second": tokens / seconds,
        # of the layers that ran, and as if every layer had run
        "flops_per_second": sums["flops"] / seconds,
        "nominal_flops_per_second": sums["flops_nominal"] / seconds,
        "utilisation": sums["flops"] / seconds / peak,
        "nominal_utilisation": sums["flops_nominal"] / seconds / peak,
    }
    means = [name for name in sums if name.endswith("_layers")]
    means += ["grad_norm", "param_norm", "flops", "flops_nominal"]
    numbers |= {name: sums[name] / steps for name in means}
    return numbers | {name: sums[name] for name in ("tokens", "steps", "seconds", "data_wait")}


def _depths(layers_run, draws):
    """Computes each stack's effective depth: layers run a draw, mean since the run began."""
    return {
        f"{stack}_depth": int(np.sum(jax.device_get(run_N))) / draws
        for stack, run_N in layers_run.items()
    }


def _learned_rates(rates_of, state) -> dict:
    """Computes the drop rates of each stack's layers at this step; {} where none are learned."""
    if "scores" not in state:
        return {}
    rates = jax.device_get(rates_of(state["scores"]))
    return {f"{stack}_rates": rates_N.tolist() for stack, rates_N in rates.items()}


def _learned_scores(state, drop) -> dict:
    """Collects what Data Driven pruning needs beside a checkpoint's arrays: numbers for JSON."""
    if "scores" not in state:
        return {}
    scores = jax.device_get(rate_scores.softmax_scores(state["scores"]))
    # A stack of which all layers or none run has nothing to learn from.
    learned = [stack for stack in scores if 0 < getattr(drop, stack) < 1]
    return {"scores": {stack: scores[stack].tolist() for stack in learned}}


def _log(numbers, step, writer, progress):
    writer.write("train", step, numbers)
    layers = [numbers[name] for name in numbers if name.endswith("_layers")]
    shown = ("loss", "lr", "words_per_second")
    progress.update(step, layers=layers, **{name: numbers[name] for name in shown})


class _signals:
    """Within it SIGTERM and SIGINT set an event; a second signal ends the process at once."""

    def __enter__(self):
        self._event = threading.Event()
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        return self._event

    def _handle(self, number, frame):
        if self._event.is_set():
            os._exit(128 + number)
        logging.warning("%s: finishing this step, then saving", signal.Signals(number).name)
        self._event.set()

    def __exit__(self, *_):
        for number, old in self._old.items():
            signal.signal(number, old)
