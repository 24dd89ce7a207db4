"""Training, from a config and a folder to checkpoints and a report; a run resumes by itself."""

import functools
import json
import math
import os
import pathlib
import signal
import threading

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils

from layerdrop_jax.data import pipeline, tokenizers
from layerdrop_jax.training import settings as settings_lib
from layerdrop_jax.training import sharding
from layerdrop_jax.training.checkpoints import Checkpoints
from layerdrop_jax.training.losses import label_smoothed_nll
from layerdrop_jax.training.metrics import MetricWriter, Progress, Window
from layerdrop_jax.training.optimizers import make_optimizer
from layerdrop_jax.training.state import count_params, make_params, make_state, model_graph
from layerdrop_jax.training.state import train_step as pure_train_step


class Interrupted(Exception):
    """SIGTERM or Ctrl-C: everything is saved, and the same command goes on from here."""


def train(config, workdir, *, command: str) -> None:
    """Trains to ``train.steps``, from the last checkpoint in ``workdir`` where there is one.

    Args:
      config: mapping with the sections of `settings.Settings`.
      workdir: the run's folder, made if need be.
      command: what started it, for the report.

    Raises:
      ValueError: a bad config, or one that does not fit the run found in ``workdir``.
      FloatingPointError: the loss is not finite; names the step and the checkpoint kept.
      Interrupted: SIGTERM or SIGINT; the state is saved.
      OSError: the folder cannot be written.
    """
    settings = settings_lib.parse(config)
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh()
    sharding.check_rows(settings.data.batch_rows, mesh)
    _check_folder(workdir, config)

    # Data
    rows, valid_rows = _prepare_data(settings, workdir, config)
    batches = pipeline.train_iterator(
        settings.data,
        rows,
        seed=settings.seed,
        accumulate=settings.train.accumulate,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    # State and step
    graph = model_graph(settings.model)
    optimizer, rate = make_optimizer(settings.optimizer)
    rates = settings.layerdrop.rates(settings.model)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def start():
        return make_state(make_params(settings.model, settings.seed), optimizer)

    state = start()
    train_step = jax.jit(
        functools.partial(
            pure_train_step,
            graph=graph,
            optimizer=optimizer,
            rates=rates,
            seed=settings.seed,
            smoothing=settings.train.label_smoothing,
            mode=settings.layerdrop.mode,
            clip_norm=settings.optimizer.clip_norm,
        ),
        donate_argnums=0,
    )
    valid_step = jax.jit(functools.partial(_valid_step, graph))
    print(
        f"{count_params(state['params']):,} parameters on {mesh.size} device(s); "
        + "; ".join(settings_lib.describe_rates(side, rates_N) for side, rates_N in rates.items()),
        flush=True,
    )

    # Restore
    checkpoints = Checkpoints(workdir / "checkpoints", settings.checkpoint)
    restored = checkpoints.restore_latest(state)
    step = 0
    if restored is not None:
        step, state = restored.step, restored.state
        batches.set_state(restored.iterator_state)
        print(f"resuming {workdir} at step {step:,}", flush=True)
    # -1: a start that was killed before its first checkpoint has left lines of step 0.
    writer = MetricWriter(workdir, step=-1 if restored is None else step)
    if restored is None:
        writer.write("start", 0, {"command": command})
        writer.write("data", 0, rows.stats)

    # Loop
    last = settings.train.steps
    window = Window()
    with _signals() as stop, Progress(last, start=step) as progress:
        metrics = None
        while step < last:
            with window.waiting():
                batch = sharding.shard_rows(next(batches), mesh, axis=1)
            previous, (state, metrics) = metrics, train_step(state, batch)
            step += 1
            window.add(metrics)
            # The step before is done, or nearly: looking at it does not hold up this one.
            if previous is not None:
                _check_finite(previous, step - 1, checkpoints)
            stopping = stop.is_set()  # read once: a signal from here on ends the next step
            at_end = step == last or stopping
            if step % settings.train.log_every == 0 or at_end:
                _check_finite(metrics, step, checkpoints)
                _log(window.close(), step, rate, writer, progress)
            valid_loss = None
            if step % settings.train.eval_every == 0 or step == last:
                with progress.paused(), window.paused():
                    valid_loss = _validate(valid_step, state["params"], settings, valid_rows, mesh)
                perplexity = _exp(valid_loss)
                writer.write("valid", step, {"loss": valid_loss, "perplexity": perplexity})
                progress.print(
                    f"step {step:,}: valid loss {valid_loss:.4f}, perplexity {perplexity:.2f}"
                )
            if valid_loss is not None or step % settings.checkpoint.every == 0 or at_end:
                _check_finite(metrics, step, checkpoints)
                checkpoints.save(step, state, batches.get_state(), valid_loss=valid_loss)
            if stopping:
                break
    checkpoints.close()
    writer.close()
    if stop.is_set():
        raise Interrupted(
            f"stopped at step {step:,} and saved it in {workdir}; "
            "the same command goes on from there"
        )


def _check_folder(workdir, config):
    """A run's folder is new, empty, or one that was started with this config."""
    if (workdir / "config.json").exists():
        changed = settings_lib.differences(read_config(workdir), config)
        fixed = [line for line in changed if not line.startswith(settings_lib.CHANGEABLE)]
        if fixed:
            raise ValueError(
                f"{workdir} holds a run with another config; it differs in {'; '.join(fixed)}. "
                "Use another --workdir, or the config of that run"
            )
    # A kill in the middle of writing config.json leaves a temporary file.
    elif workdir.is_dir() and any(path.suffix != ".tmp" for path in workdir.iterdir()):
        raise ValueError(
            f"{workdir} is not empty and is no run's folder (it has no config.json): "
            "use another --workdir"
        )


def read_config(workdir) -> dict:
    """A run's config.json.

    Raises:
      FileNotFoundError: no such folder, or one that is not a run's.
      ValueError: config.json is not JSON.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        what = (
            "has no config.json: it is not a run's folder" if path.parent.is_dir() else "is missing"
        )
        raise FileNotFoundError(f"--workdir={workdir} {what}; train makes one")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _prepare_data(settings, workdir, config):
    """The packed rows of train and valid; fills the folder once the data is known to be there."""
    pairs, valid, test = (pipeline.load_pairs(settings.data, s) for s in ("train", "valid", "test"))
    if jax.process_index() == 0:
        tokenizers.write_atomically(workdir / "config.json", json.dumps(config, indent=2) + "\n")
        # evaluate, prune and generate need nothing but the run's folder
        for split, held_out in (("valid", valid), ("test", test)):
            languages = settings.data.source, settings.data.target
            pipeline.save_eval_text(workdir, split, held_out, languages=languages)
    path = workdir / "tokenizer.json"
    if jax.process_index() == 0 and not path.exists():
        print(f"training a tokenizer of {settings.data.vocab_size:,} entries", flush=True)
        tokenizers.train_tokenizer(pairs, settings.data.vocab_size, path)
    multihost_utils.sync_global_devices("the run's folder has its tokenizer")
    tokenizer = tokenizers.load_tokenizer(path)
    rows = pipeline.prepare_rows(settings.data, tokenizer, pairs, seed=settings.seed)
    stats = rows.stats
    print(
        f"{stats['pairs']:,} sentence pairs in {stats['rows']:,} rows; "
        f"{stats['skipped_too_long']:,} longer than {settings.data.max_length} tokens skipped; "
        f"padding {stats['source_padding']:.1%} of source tokens, "
        f"{stats['target_padding']:.1%} of target tokens",
        flush=True,
    )
    return rows, pipeline.prepare_rows(settings.data, tokenizer, valid)


def _valid_step(graph, params, batch):
    """(sum of -log p over target tokens, their number)."""
    weight_BxT = (batch["target_segment"] > 0).astype(np.float32)
    logits_BxTxV = nnx.merge(graph, params)(batch)
    _, nll = label_smoothed_nll(logits_BxTxV, batch["target_output"], weight_BxT, 0.0)
    return nll, weight_BxT.sum()


def _validate(valid_step, params, settings, rows, mesh):
    """Mean -log p of the validation split's target tokens, in nats, every layer running."""
    batches = pipeline.eval_batches(
        settings.data,
        rows,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    sums = [valid_step(params, sharding.shard_rows(batch, mesh, axis=0)) for batch in batches]
    nll, tokens = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
    return float(nll / tokens)


def _check_finite(metrics, step, checkpoints):
    loss, grad_norm, param_norm = (float(metrics[n]) for n in ("loss", "grad_norm", "param_norm"))
    if not all(map(math.isfinite, (loss, grad_norm, param_norm))):
        checkpoints.close()
        raise FloatingPointError(
            f"step {step:,} has a loss of {loss}, a gradient of norm {grad_norm} and leaves "
            f"parameters of norm {param_norm}: training stops, the last good checkpoint is kept. "
            "A lower optimizer.rate, a longer warm-up or optimizer.clip_norm may help"
        )


def _log(sums, step, rate, writer, progress):
    tokens, steps = sums["tokens"], sums["steps"]
    shown = {
        "loss": sums["loss"] / tokens,
        "lr": float(rate(step - 1)),
        "encoder_layers": sums["encoder_layers"] / steps,
        "decoder_layers": sums["decoder_layers"] / steps,
        "words_per_second": tokens / sums["seconds"],
    }
    writer.write(
        "train",
        step,
        shown
        | {
            "perplexity": _exp(sums["nll"] / tokens),
            "grad_norm": sums["grad_norm"] / steps,
            "param_norm": sums["param_norm"] / steps,
            "tokens": tokens,
            "steps": steps,
            "seconds": sums["seconds"],
            "data_wait": sums["data_wait"],
        },
    )
    progress.update(step, **shown)


def _exp(nats):
    return math.exp(min(nats, 700.0))


class _signals:
    """Within it SIGTERM and SIGINT set an event; a second one ends the process at once."""

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
