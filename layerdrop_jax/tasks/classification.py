"""Classification as a task: fine-tuning on GLUE and its like, and scores by depth."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from layerdrop_jax.data import labelled, pipeline, tokenizers
from layerdrop_jax.models.cut import masks
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.runs.folder import is_fresh, make_tokenizer, read_config
from layerdrop_jax.runs.metrics import check_scored
from layerdrop_jax.runs.run import Run
from layerdrop_jax.runs.settings import ClassificationSettings
from layerdrop_jax.scores.glue_metrics import scores as glue_scores
from layerdrop_jax.step import losses
from layerdrop_jax.step.devices import over_devices
from layerdrop_jax.step.flops import encoder_flops
from layerdrop_jax.symbols import PAD
from layerdrop_jax.tasks.depths import score_depths
from layerdrop_jax.tasks.task import Score, Task, keeps_head

# Of GLUE's sets only MNLI has more than one split to score on.
SPLITS = ("valid", "valid_mismatched", "test")
loss = losses.classification_loss


def prepare(settings, workdir):
    """Prepares the rows of train and valid; fills a new folder once all of it works.

    Raises:
      ValueError: data with other labels than the head has outputs, or than it was trained with.
    """
    data = settings.data
    train, names = labelled.load_training(data)
    held_out = labelled.load_held_out(data)
    fresh = is_fresh(workdir)
    # Later the folder that it began with may be gone, and the rows' hash tells labels apart too.
    head = labelled.Head(names, labelled.text_columns(data))
    _check_head(settings, head, settings.init.run if fresh else "")
    tokenizer = make_tokenizer(
        workdir, _train_tokenizer, train, data.vocab_size, origin=settings.init.run
    )
    rows = labelled.prepare_examples(data, tokenizer, train, names)
    # All of them: what cannot be scored is better known before training than after it.
    held_out_rows = {}
    for split, examples in held_out.items():
        check_scored(len(examples), split, f"{data.dataset} has no examples in it")
        held_out_rows[split] = labelled.prepare_examples(data, tokenizer, examples, names)
    stats = rows.stats
    print(
        f"{stats['examples']:,} examples, {stats['tokens']:,} tokens; {stats['cut']:,} longer than "
        f"{data.length:,} tokens lost their end; padding {stats['padding']:.1%}",
        flush=True,
    )
    if fresh and jax.process_index() == 0:
        # evaluate, prune and generate need nothing but the run's folder
        for split, examples in held_out.items():
            labelled.save_examples(workdir, split, examples)
        labelled.save_head(workdir, head)
    return rows, held_out_rows["valid"]


def row(settings) -> dict:
    """Makes the arrays of an example without text; with one output the label is a number."""
    kind = np.float32 if settings.model.num_classes == 1 else np.int32
    return labelled.empty_row(settings.data.length, kind)


def _train_tokenizer(examples, vocab_size, path):
    texts = [text for example in examples for text in example.texts]
    return tokenizers.train_byte_bpe(texts, vocab_size, path)


def _check_head(settings, head, begun):
    names, outputs, data = head.labels, settings.model.num_classes, settings.data.dataset
    if outputs != max(len(names), 1):
        what = ", ".join(names) if names else "numbers: a regression, which has one output"
        raise ValueError(
            f"model.num_classes={outputs}, but the labels of {data} are {what}; set "
            f"model.num_classes={max(len(names), 1)}"
        )
    if begun and keeps_head(read_config(begun), settings):
        theirs = labelled.load_head(begun)
        for what in ("labels", "columns"):
            their, our = getattr(theirs, what), getattr(head, what)
            unnamed = their in labelled.UNNAMED and len(their) == len(our)
            if their != our and not (what == "columns" and unnamed):
                raise ValueError(
                    f"the head of {begun} has the {what} {', '.join(their)}, and {data} has "
                    f"{', '.join(our)}: start from the network that was pre-trained"
                )


def fingerprint(rows) -> str:
    """Computes the SHA-256 of the training examples: the iterator's position is a place in them."""
    digest = hashlib.sha256()
    for array in (rows.tokens, rows.offsets, rows.labels):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def validation(model, batch):
    """Sums the loss and, with classes, the right answers (100 each): (sums by name, examples)."""
    logits_BxC = model.classify(model(batch["tokens"]))
    _, nll, examples = losses.label_loss(logits_BxC, batch, smoothing=0.0)
    if model.config.num_classes == 1:
        return {"loss": nll}, examples
    right_B = (jnp.argmax(logits_BxC, axis=-1) == batch["label"]) * batch["weight"]
    return {"loss": nll, "accuracy": 100.0 * jnp.sum(right_B)}, examples


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """Computes GLUE's scores of every split with labels, and of valid at every depth.

    ``score`` is the first of the set's metrics, which ``metric`` names; all are in percent. The
    depths keep the layers of `pruning.every_depth`, without fine-tuning.

    Returns:
      ``(scores, depths)``: a record for each split, whole, and one for each depth.
    """
    splits = _saved_splits(run)
    if "valid" not in splits:
        raise ValueError(f"{run.workdir} has no data/valid.jsonl, on which depths are scored")
    results, classify = [], make_classifier(run)
    for split in splits:
        scores = _score(run, classify, split, description=f"scoring {split}")
        if split == "valid":
            whole = scores
        signature = f"{run.settings.data.dataset}|{scores['metric']}"
        about = {"split": split, "signature": signature, "averaged": list(run.steps)}
        results.append(about | scores)

    def at(keep, description):
        return {"split": "valid"} | _score(run, classify, "valid", keep, description=description)

    depths = score_depths(run, at, {"split": "valid"} | whole)
    return results, depths


def make_classifier(run: Run):
    """Makes ``classify(rows, keep=None, description="") -> logits float32 [rows, C]``.

    ``keep`` is as in `Encoder.__call__`; it is data, so one executable serves every depth.
    """
    graph = model_graph(run.settings.model)

    def logits(params, keep, tokens_BxT):
        network = nnx.merge(graph, params)
        return network.classify(network(tokens_BxT, keep=keep))

    step = over_devices(logits, run.params)
    everything = masks(run.settings.model, {})

    def classify(rows, keep=None, description=""):
        keep, found = everything | (keep or {}), []
        for batch in pipeline.counted_batches(description, run.settings.data, rows):
            found.append(jax.device_get(step(keep, batch["tokens"])))
        logits_RxC = np.concatenate(found)[: len(rows)]
        return logits_RxC[np.argsort(pipeline.eval_order(rows))]

    return classify


def _score(run, classify, split, keep=None, description=""):
    rows = _rows(run, split)
    logits_RxC = classify(rows, keep, description)
    names = labelled.load_labels(run.workdir)
    metrics = labelled.task_metrics(run.settings.data, names)
    answers_R = logits_RxC.argmax(axis=1) if names else logits_RxC[:, 0]
    found = glue_scores(metrics, answers_R, rows.labels)
    about = {"score": found[metrics[0]], "metric": metrics[0], "examples": len(rows)}
    return about | found


def make_quality(run: Run):
    """Makes ``quality(split, keep=None, description="") -> {"score": ..., "accuracy": ..., ...}``.

    It gives {} for a split whose labels are hidden. ``keep`` is as in `make_classifier`.
    """
    classify = make_classifier(run)

    def quality(split, keep=None, description=""):
        if split not in _saved_splits(run):
            return {}
        found = _score(run, classify, split, keep, description)
        return {name: value for name, value in found.items() if isinstance(value, float)}

    return quality


def start_request(settings, network, ids_BxP):
    """Begins a request: computes the features [B, P, D] of texts."""
    return network(ids_BxP)


def finish_request(settings, network, x_BxPxD):
    """Ends a request: computes the logits [B, C] of the classes."""
    return network.classify(x_BxPxD)


def columns(run: Run) -> tuple[str, ...]:
    """Names the texts that an input has, as the columns of the training files did."""
    return labelled.load_head(run.workdir).columns


def make_answer(run: Run):
    """Makes ``answer(inputs, keep=None) -> dicts``, which classifies texts, or tuples of texts.

    A tuple has the texts that `columns` names; a text by itself is the only one. The dict of an
    input holds ``label`` and ``probabilities`` by label, or ``value`` where the labels are numbers.
    """
    data, names = run.settings.data, labelled.load_labels(run.workdir)
    classify, scale = make_classifier(run), labelled.label_scale(data)

    def answer(inputs, keep=None):
        inputs = [(texts,) if isinstance(texts, str) else texts for texts in inputs]
        examples = [labelled.Example(texts, names[0] if names else 0.0) for texts in inputs]
        if not examples:
            return []
        rows = labelled.prepare_examples(data, run.tokenizer, examples, names)
        if rows.stats["cut"]:
            logging.warning(
                "%d lines have more than %d tokens: their end was cut off",
                rows.stats["cut"],
                data.length,
            )
        logits_RxC = classify(rows, keep, "classifying")
        return [_said(logits_C, names, scale) for logits_C in logits_RxC]

    return answer


def _said(logits_C, names, scale) -> dict:
    if not names:
        return {"value": float(logits_C[0]) * scale}
    shares_C = np.exp(logits_C - logits_C.max())
    shares_C /= shares_C.sum()
    shares = {name: round(float(p), 6) for name, p in zip(names, shares_C, strict=True)}
    return {"label": names[int(logits_C.argmax())], "probabilities": shares}


def positions(batch) -> dict:
    """Marks the positions of a batch that hold tokens of examples, bool[B, T], by stack."""
    of_example_Bx1 = batch["weight"][:, None] > 0  # a row of padding has its two symbols too
    return {"encoder": (batch["tokens"] != PAD) & of_example_Bx1}


def targets(batch):
    """Returns the labels of a batch, and which of them count, [B] each."""
    return batch["label"], batch["weight"] > 0


def valid_rows(run: Run):
    """Loads the rows of the validation split that a run's folder holds."""
    return _rows(run, "valid")


def outputs(model, batch, keep=None, watch=None):
    """Computes logits [B, 1, C], and which of them mean something, bool[B, 1]."""
    logits_BxC = model.classify(model(batch["tokens"], keep=keep, watch=watch))
    return logits_BxC[:, None], batch["weight"][:, None] > 0


@functools.lru_cache(maxsize=8)
def _read_rows(workdir, data, split, tokenizer):
    examples = labelled.load_saved_examples(workdir, split)
    check_scored(len(examples), split, f"{workdir / 'data'} has no examples of it")
    return labelled.prepare_examples(data, tokenizer, examples, labelled.load_labels(workdir))


def _rows(run, split):
    return _read_rows(run.workdir, run.settings.data, split, run.tokenizer)


def _saved_splits(run) -> list[str]:
    """Lists the splits with labels that a run's folder holds."""
    folder = run.workdir / "data"
    return [split for split in SPLITS if (folder / f"{split}.jsonl").exists()]


def same_head(begun, settings) -> bool:
    """Says whether two classifications share their classes: those of one data set do."""
    theirs, ours = begun["data"], settings.data
    own_files = ours.dataset == "tsv"  # another folder is another task
    return theirs["dataset"] == ours.dataset and (not own_files or theirs["path"] == ours.path)


def _rows_of_a_report(line):
    name = f"{line['split'].replace('_', ' ')} {line['metric']}"
    return [(name, f"**{line['score']:.2f}**, {line['examples']:,} examples")]


TASK = Task(
    name="classification",
    settings=ClassificationSettings,
    score=Score(
        key="score",
        label="score",
        best=max,
        # GLUE is compared on its dev sets: the labels of its test sets are not public.
        split="valid",
        depths="valid",
        counted="examples",
        perplexity=False,
        # The best network is the one that is right most often, as the reference has it.
        watched=(("accuracy", max), ("loss", min)),
        kind=lambda line: line["metric"],
        rows=_rows_of_a_report,
    ),
    loss=loss,
    flops=encoder_flops,
    positions=positions,
    validation=validation,
    prepare=prepare,
    row=row,
    fingerprint=fingerprint,
    valid_rows=valid_rows,
    evaluate=evaluate,
    make_quality=make_quality,
    targets=targets,
    outputs=outputs,
    start_request=start_request,
    finish_request=finish_request,
    make_answer=make_answer,
    columns=columns,
    same_head=same_head,
)
