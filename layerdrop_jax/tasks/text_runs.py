"""What tasks over running text have in common: how the folder of a run is filled."""

import jax

from layerdrop_jax.data import streams
from layerdrop_jax.files import write_json
from layerdrop_jax.runs.folder import is_fresh, make_tokenizer
from layerdrop_jax.tasks.task import Score


def prepare_texts(settings, workdir, *, load, train_tokenizer, make_blocks, source_record, check):
    """Prepares the blocks of train and valid; fills a new folder once all of it works.

    Args:
      settings: of the run.
      workdir: its folder.
      load: ``load(data, split)`` gives the texts of a split.
      train_tokenizer: ``train_tokenizer(texts, vocab_size, path)`` writes one.
      make_blocks: ``make_blocks(data, tokenizer, texts)`` gives rows.
      source_record: ``source_record(data)`` tells the texts from others.
      check: ``check(split, rows)`` raises a ValueError where a split has nothing to score.
    """
    data = settings.data
    texts, valid, test = (load(data, split) for split in ("train", "valid", "test"))
    fresh = is_fresh(workdir)
    tokenizer = make_tokenizer(
        workdir, train_tokenizer, texts, data.vocab_size, origin=settings.init.run
    )
    every = {"train": texts, "valid": valid, "test": test}
    for split in ("train", "valid", "test"):
        every[split] = make_blocks(data, tokenizer, every[split])
        check(split, every[split])
    rows = every["train"]
    stats = rows.stats
    print(
        f"{stats['texts']:,} texts, {stats['tokens']:,} tokens in {stats['rows']:,} blocks of "
        f"{data.length:,}; {stats['unknown']:.2%} unknown",
        flush=True,
    )
    if fresh and jax.process_index() == 0:
        # evaluate, prune and generate need nothing but the run's folder
        for split, held_out in (("valid", valid), ("test", test)):
            streams.save_texts(workdir, split, held_out)
        write_json(workdir / "data" / "source.json", source_record(data))
    return rows, every["valid"]


def perplexity_score(counted: str) -> Score:
    """Declares perplexity as the score of a task.

    Args:
      counted: what it is a mean over.
    """
    return Score(
        key="perplexity",
        label="perplexity",
        best=min,
        log=True,
        depths="valid",
        counted=counted,
        rows=_perplexity_rows,
    )


def _perplexity_rows(line) -> list[tuple[str, str]]:
    """Says the perplexity of a split in a row of a report."""
    tokens = f"{line['nats']:.4f} nats a token, {line['tokens']:,.0f} tokens"
    return [(f"{line['split']} perplexity", f"**{line['perplexity']:,.2f}**, {tokens}")]
