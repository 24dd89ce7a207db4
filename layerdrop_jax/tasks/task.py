"""What a run can be about: a `Task` declares everything that tells it from others, in one object.

The loop, the commands, plots, reports and studies read it here and nowhere else. A config names its
task: one of `settings.TASKS`, or "module:NAME" for a `Task` in a module that Python can import.
docs/extending.md goes through what it takes to add one.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping

from layerdrop_jax.runs.settings import find_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What networks of a task are compared by, and how tables and pictures say it.

    Attributes:
      key: its name in the lines of metrics.jsonl.
      label: its name for a reader.
      best: min or max: which of several is the best.
      log: whether it is drawn on a logarithmic axis.
      split: on which whole networks are compared.
      depths: the split on which the network cut to each depth is scored.
      counted: what the loss is a mean over, and what the speed of training counts.
      perplexity: whether exp(loss) is a perplexity.
      watched: names in a line of validation, each with min or max; the first that a line has picks
        the best checkpoint.
      layers: what the depths count, for a reader.
      apart: the entry of a line about the whole network by which its lines are told apart: of those
        that agree in it the last counts.
      kind: ``kind(line)`` names how a line was scored; the line's ``signature`` has the details.
      rows: ``rows(line)`` gives what a report says of the whole network, pairs of texts.
    """

    key: str
    label: str
    best: Callable
    log: bool = False
    split: str = "test"
    depths: str = "test"
    counted: str
    perplexity: bool = True
    watched: tuple = (("loss", min),)
    layers: str = "layers kept"
    apart: str = "split"
    kind: Callable | None = None
    rows: Callable | None = None

    @property
    def better(self) -> str:
        """``higher`` or ``lower``: which of two is the better one."""
        return "lower" if self.best is min else "higher"

    @property
    def of_depths(self) -> str:
        """Names the score of the network cut to a depth, with the split that it is taken on."""
        return f"{self.depths} {self.label}"

    def kind_of(self, line: Mapping) -> str:
        """Names how a line was scored."""
        return self.kind(line) if self.kind else self.label

    def rows_of(self, line: Mapping) -> list[tuple[str, str]]:
        """Says a line about the whole network in rows of a table."""
        if self.rows:
            return self.rows(line)
        return [(f"{line.get('split', 'test')} {self.label}", f"**{line[self.key]:,.2f}**")]

    def watch(self, line: Mapping) -> tuple[str, Callable]:
        """Finds what picks the best checkpoint in a line of validation: its name, and min or max.

        Raises:
          ValueError: the line has none of ``watched``.
        """
        for name, best in self.watched:
            if line.get(name) is not None:
                return name, best
        names = ", ".join(name for name, _ in self.watched)
        raise ValueError(f"validation gives {', '.join(line)}, and not {names}: see Score.watched")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task; rows, batches and requests are its own, nobody else looks into them.

    Attributes:
      name: as configs have it.
      settings: the dataclass of a whole config, see `layerdrop_jax.runs.settings`.
      score: what its networks are compared by.
      loss: of a micro-batch, a `layerdrop_jax.step.losses.Loss`.
      flops: ``flops(model, batch)``, what the layers of a micro-batch cost, and the rest.
      positions: ``positions(batch)``, bool[B, T] by stack: where there are tokens, not padding.
      validation: ``validation(network, batch) -> (sums by name, count)``; ``loss`` is among them.
      prepare: ``prepare(settings, workdir) -> (rows of train, rows of valid)``; fills a folder that
        is new with the tokenizer and the held-out data. Rows have a length, items that are dicts of
        arrays, ``padding``, such an item without content, and ``stats``.
      row: ``row(settings)``, the arrays of a row without content, of which a program needs the
        shapes and types: what ``padding`` is of rows that ``prepare`` makes, without any text.
      fingerprint: ``fingerprint(rows)``, a text that tells these rows of train from others.
      valid_rows: ``valid_rows(run)``, the rows of the validation split that a folder holds.
      evaluate: ``evaluate(run) -> (records, records)``, of the whole network and of every depth.
      make_quality: ``make_quality(run)`` gives ``quality(split, keep=None, description="")``, a
        record of any layers' scores, by one executable; {} of a split that cannot be scored.
      targets: ``targets(batch)``, what a batch asks for and which of it counts.
      outputs: ``outputs(network, batch, keep=None, watch=None)``, what two networks are compared
        by, float[B, T, ...], and which of it means something, bool[B, T].
      start_request: ``start_request(settings, network, ids_BxP) -> state``, the first half of what
        a depth is timed by: it reads prompts.
      finish_request: ``finish_request(settings, network, state)``, the other half: it answers.
      prompts: ``prompts(run, count)``, int32 [count, P], the beginnings of requests from the
        validation split, padded to P tokens: what drafts are measured on. None: the task has none.
      drafted: ``drafted(settings, network, ids_BxP, draft_N=None)``, those requests answered as
        generation answers them, with at most ``prune.new_tokens`` tokens, by a draft of the layers
        bool[N] or by none: (tokens, counts), the counts a `decoding.drafts.Drafted` or None.
      left_early: ``left_early(settings, network, ids_BxP, threshold)``, the same requests answered
        with tokens that leave the decoder early, by the kind of ``decode.exit`` and this threshold:
        (tokens, the layers behind each), both int32 [B, T].
      judge: ``judge(network, ids_BxP, tokens_BxT)``, what the whole network makes of answers, given
        what was said before: log p of each token, whether it is the likeliest one (1 or 0), and
        which of them are no padding, [B, T] each. None as ``prompts``.
      columns: ``columns(run)``, the names of the texts that an input has; None: it is one text.
      make_answer: ``make_answer(run)`` gives ``answer(inputs, keep=None) -> answers``, one for each
        input: a text, or a tuple of texts where there are ``columns``. An answer is a text of one
        line, or a dict for JSON. Calls with any ``keep`` share what they compile. Where the config
        has ``decode.exit``, ``answer`` also takes ``depths``, a list, and adds to it a list for
        each input: how many decoder layers ran for each token of its answer, the end included.
      scored: ``scored(model)``, the model's config as evaluation computes it.
      same_head: ``same_head(begun, settings)``, of a run that starts from one of the same task with
        the config ``begun``: whether it takes the head over.
    """

    name: str
    settings: type
    score: Score
    loss: Callable
    flops: Callable
    positions: Callable
    validation: Callable
    prepare: Callable
    row: Callable
    fingerprint: Callable
    valid_rows: Callable
    evaluate: Callable
    make_quality: Callable
    targets: Callable
    outputs: Callable
    start_request: Callable
    finish_request: Callable
    make_answer: Callable
    prompts: Callable | None = None
    drafted: Callable | None = None
    left_early: Callable | None = None
    judge: Callable | None = None
    columns: Callable = lambda run: None
    scored: Callable = lambda model: model
    same_head: Callable = lambda begun, settings: True


def task_of(settings: typing.Any) -> Task:
    """Finds the task that a config is about."""
    return find_task(settings.task)


def keeps_head(begun: Mapping, settings: typing.Any) -> bool:
    """Says whether a run that starts from another one's network takes its head over.

    Args:
      begun: the other run's config.
      settings: of the run that starts.
    """
    return begun["task"] == settings.task and task_of(settings).same_head(begun, settings)
