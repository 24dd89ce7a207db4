"""Translation beside other engines: the same weights and sentences, greedily and by a beam.

  make bench-decode                              # writes runs/bench_decode
  python -m benchmarks.decode --out=DIR --runs RUN
  python -m benchmarks.decode --out=DIR --runs RUN --add   # the runs alone; DIR keeps the others

The network of random weights has Marian's base size, and translates 64 sentences of random tokens,
of 6 to 40 each; a run translates 64 sources spread over its validation split. The engines are this
project and CTranslate2 in float32 and in int8, and Hugging Face's `generate` (PyTorch) in float32;
the others where they are installed. They take turns in one process, with as many threads as the
machine has cores; ratios are taken within a round.

An engine's time counts where its best hypotheses are those of this project for 95 of 100 sentences:
sums that are added up in another order part at a near tie. Answers that run to the limit are timed
and not compared: there this project, as fairseq, lets nothing but `</s>` follow, and the others
rank a beam without it. int8 rounds the weights, so that its hypotheses are its own; its time stands
beside its share, and beside BLEU where a run translates.

Writes results.json, which holds every measurement, and report.md.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import tempfile

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.measuring import interleaved, listed, machine, ratio, shown, table, typed, write
from layerdrop_jax.commands import export_ctranslate2
from layerdrop_jax.decoding.batching import length_limit
from layerdrop_jax.files import write_json
from layerdrop_jax.interop import ctranslate2, folders
from layerdrop_jax.models.params import make_params
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.run import Run, load_run
from layerdrop_jax.studies.jobs import load_config
from layerdrop_jax.symbols import BOS, EOS, FIRST_WORD, PAD, SPECIAL_SYMBOLS
from layerdrop_jax.tasks import encoder_decoder

OURS, OURS_INT8, HUGGINGFACE = "this project", "this project int8", "Hugging Face"
CTRANSLATE2 = {"CTranslate2 float32": "float32", "CTranslate2 int8": "int8"}
INT8 = (OURS_INT8, "CTranslate2 int8")
PACKAGES = {HUGGINGFACE: ("transformers", "torch"), **dict.fromkeys(CTRANSLATE2, ("ctranslate2",))}
NEEDED = 0.95  # of the answers that end must be alike before a time counts

MARIAN = {
    "model.encoder_layers": 6,
    "model.decoder_layers": 6,
    "model.embed_dim": 512,
    "model.ffn_dim": 2048,
    "model.attention_heads": 8,
    "data.vocab_size": 32_000,
    # A table of its own: a random network with one table says its last token again and again.
    "model.share_embeddings": "none",
    "model.norm": "post",
    "model.max_source_length": 64,
    "model.max_target_length": 64,
    "data.source_length": 64,
    "data.target_length": 64,
    "data.max_length": 64,
    "model.dtype": "float32",
    "decode.length_penalty": 1.0,
    "decode.min_length": 0,
    "decode.max_length_a": 0.0,
    "decode.max_length_b": 63,
}
SMALL = {"model.embed_dim": 32, "model.ffn_dim": 64, "model.attention_heads": 2,
         "data.vocab_size": 128, "model.encoder_layers": 1, "model.decoder_layers": 2}  # fmt: skip
# Of the random network's logits, the standard deviation and the eos: a share of the largest of V to
# be expected, SPREAD sqrt(2 log V), so that an answer ends here and there.
SPREAD, EOS_SHARE = 8.0, 0.84


@dataclasses.dataclass(frozen=True)
class Job:
    """What all engines translate, and how.

    Attributes:
      run: the network, with `decode` as it is to be searched with.
      words: the names of all ids.
      sentences: lists of ids, without eos.
      batch: sentences at a time.
      folder: where networks are exported to.
    """

    run: Run
    words: list[str]
    sentences: list[list[int]]
    batch: int
    folder: pathlib.Path

    @property
    def chunks(self) -> list[list[int]]:
        """The numbers of the sentences of each batch, of similar lengths."""
        order = sorted(range(len(self.sentences)), key=lambda n: -len(self.sentences[n]))
        return [order[n : n + self.batch] for n in range(0, len(order), self.batch)]

    @property
    def longest(self) -> int:
        """The most tokens of an answer, eos not counted."""
        config, most = self.run.settings.decode, self.run.settings.model.max_target_length - 1
        return min(config.max_length_b, most)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--runs", type=pathlib.Path, nargs="*", default=[], help="run folders")
    parser.add_argument("--rounds", type=int, default=5, help="timed translations of each kind")
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="sentences at once")
    parser.add_argument("--smoke", action="store_true", help="a tiny network: does it all work?")
    parser.add_argument("--add", action="store_true", help="the runs alone, to what --out holds")
    arguments = parser.parse_args(argv)
    least = min(arguments.rounds, arguments.sentences, *arguments.beams, *arguments.batches)
    if least < 1:
        parser.error("--rounds, --sentences, --beams and --batches must be 1 or more")
    if arguments.add and not arguments.runs:
        parser.error("--add times runs alone: name them with --runs")
    if arguments.add and not (arguments.out / "results.json").exists():
        parser.error(f"--add adds to results.json, and {arguments.out} has none: leave --add out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "engines": versions()}
    networks = [] if arguments.add else [random_network(arguments.smoke)]
    networks += [load_run(run) for run in arguments.runs]
    results["times"] = others(arguments.out, networks) if arguments.add else []
    command = typed("decode", argv)
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as made:
        for number, run in enumerate(networks):
            folder = pathlib.Path(made) / str(number)
            sentences = sources(run, arguments.sentences)
            words = names_of_ids(run)
            export(folder, run, words)
            for batch in arguments.batches:
                for beam in arguments.beams:
                    job = Job(searching(run, beam, sentences), words, sentences, batch, folder)
                    rows = measure(job, arguments.rounds, progress)
                    about = {"network": run.workdir.name, "batch": batch, "beam": beam}
                    results["times"] += [about | row | {"command": command} for row in rows]
                    # After each case, as all of them take a while.
                    write(arguments.out, results, report(results))
    print(report(results))


def others(folder, networks) -> list[dict]:
    """Reads what results.json in a folder has of other networks than these."""
    here = {run.workdir.name for run in networks}
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))["times"]
    return [row for row in kept if row["network"] not in here]


def versions() -> dict:
    """Looks up the versions of the engines that are installed."""
    names = dict.fromkeys(name for packages in PACKAGES.values() for name in packages)
    return {
        name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)
    }


def random_network(smoke: bool) -> Run:
    """Makes a run without a folder: random weights, but answers that end as those of others do."""
    config = load_config("configs/wmt.py:small", MARIAN | (SMALL if smoke else {}))
    parsed = settings.parse(config)
    params = make_params(parsed.model, 1)
    # Logits that differ clearly: between near ties each engine would round its own way. And an eos
    # that is as likely everywhere: the last norm adds to one channel what eos alone looks at.
    params = jax.device_get(params)
    table_VxD = SPREAD * np.array(params["output"]["table"])
    table_VxD[:, 0] = 0.0
    table_VxD[EOS] = 0.0
    table_VxD[EOS, 0] = 1.0
    scale_NxD, bias_NxD = (np.array(params["decoder"]["ffn_norm"][n]) for n in ("scale", "bias"))
    largest = SPREAD * (2 * np.log(len(table_VxD))) ** 0.5
    scale_NxD[-1, 0], bias_NxD[-1, 0] = 0.0, EOS_SHARE * largest
    params["output"]["table"] = table_VxD
    params["decoder"]["ffn_norm"] = {"scale": scale_NxD, "bias": bias_NxD}
    name = "smoke" if smoke else "Marian base size, random weights"
    return Run(pathlib.Path(name), config, parsed, None, params, [])


def sources(run, count: int) -> list[list[int]]:
    """Takes sources of the validation split, or draws them where there is none."""
    if run.tokenizer is not None:
        return [source for source, _ in encoder_decoder.spread_pairs(run, count)]
    draw, most = np.random.default_rng(0), run.settings.model.source_vocab_size
    return [draw.integers(FIRST_WORD, most, draw.integers(6, 41)).tolist() for _ in range(count)]


def names_of_ids(run) -> list[str]:
    size = run.settings.model.target_vocab_size
    if run.tokenizer is not None:
        return export_ctranslate2.names_of_ids(run.tokenizer, size)
    return [*SPECIAL_SYMBOLS, *(f"w{number}" for number in range(len(SPECIAL_SYMBOLS), size))]


def searching(run, beam: int, sentences) -> Run:
    """Gives the run that searches with a beam; CTranslate2 has no penalty for <unk>."""
    decode = dataclasses.replace(run.settings.decode, beam=beam, unknown_penalty=0.0)
    # Hugging Face's and CTranslate2's limits are a batch's: here that of the longest sentence.
    how = {"config": decode, "max_positions": run.settings.model.max_target_length}
    longest = max(length_limit(len(source) + 1, **how) for source in sentences)
    decode = dataclasses.replace(decode, max_length_a=0.0, max_length_b=longest)
    # A batch is what the benchmark says.
    decode = dataclasses.replace(decode, batch_tokens=2**30)
    return run._replace(settings=dataclasses.replace(run.settings, decode=decode))


# ---------------------------------------------------------------------------------------------
# engines


def export(folder, run, words) -> None:
    """Writes a network for every engine that is installed."""
    model, params = run.settings.model, run.params
    if installed(HUGGINGFACE):
        symbols = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
        symbols |= {"decoder_start_token_id": EOS}
        symbols |= {"langs": ["a", "b"]} if model.norm == "post" else {}
        (folder / HUGGINGFACE).mkdir(parents=True)
        folders.write_state(folder / HUGGINGFACE, model.export_params("huggingface", params))
        write_json(
            folder / HUGGINGFACE / "config.json", model.export_config("huggingface") | symbols
        )
    for name, kind in CTRANSLATE2.items():
        if installed(name):
            described = model.export_config("ctranslate2")
            state = model.export_params("ctranslate2", params)
            start = SPECIAL_SYMBOLS[EOS]
            ctranslate2.write(folder / name, described, state, words, kind, start=start)


def installed(engine: str) -> bool:
    return all(importlib.util.find_spec(package) for package in PACKAGES[engine])


def engines(job: Job) -> dict:
    """Makes ``translate() -> answers``, lists of ids in the order of the sentences, by engine."""
    found = {OURS: ours(job, ""), OURS_INT8: ours(job, "int8")}
    if installed(HUGGINGFACE):
        found[HUGGINGFACE] = huggingface(job)
    for name, kind in CTRANSLATE2.items():
        if installed(name):
            found[name] = with_ctranslate2(job, name, kind)
    return found


def ours(job, quantize):
    settings = job.run.settings
    decode = dataclasses.replace(settings.decode, quantize=quantize)
    run = job.run._replace(settings=dataclasses.replace(settings, decode=decode))
    search = encoder_decoder.make_search(run, max_source=encoder_decoder.longest_source(settings))

    def translate():
        answers = [[]] * len(job.sentences)
        for chunk in job.chunks:
            found = search([job.sentences[n] for n in chunk])
            for number, n_best in zip(chunk, found.hypotheses, strict=True):
                answers[number] = n_best[0].tokens
        return answers

    return translate


def huggingface(job):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count())
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(job.folder / HUGGINGFACE).eval()
    config = job.run.settings.decode
    options = {"num_beams": config.beam, "do_sample": False, "max_new_tokens": job.longest + 1}
    options |= {"min_new_tokens": config.min_length}
    if config.no_repeat_ngram:
        options["no_repeat_ngram_size"] = config.no_repeat_ngram
    if config.beam > 1:
        penalty = config.length_penalty if config.normalize else 0.0
        options |= {"early_stopping": True, "length_penalty": penalty}

    @torch.inference_mode()
    def translate():
        answers = [[]] * len(job.sentences)
        for chunk in job.chunks:
            rows = [[*job.sentences[n], EOS] for n in chunk]
            width = max(map(len, rows))
            ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
            found = model.generate(ids, attention_mask=(ids != PAD).long(), **options)
            for number, row in zip(chunk, found[:, 1:].tolist(), strict=True):
                answers[number] = row[: row.index(EOS) if EOS in row else job.longest]
        return answers

    return translate


def with_ctranslate2(job, name, kind):
    import ctranslate2 as library

    translator = library.Translator(
        str(job.folder / name), device="cpu", compute_type=kind, intra_threads=os.cpu_count()
    )
    options = export_ctranslate2.search_options(job.run.settings)
    options["max_decoding_length"] = job.longest
    ids = {word: number for number, word in enumerate(job.words)}

    def translate():
        answers = [[]] * len(job.sentences)
        for chunk in job.chunks:
            lines = [[job.words[i] for i in job.sentences[n]] for n in chunk]
            found = translator.translate_batch(lines, max_batch_size=job.batch, **options)
            for number, result in zip(chunk, found, strict=True):
                answers[number] = [ids[word] for word in result.hypotheses[0]]
        return answers

    return translate


# ---------------------------------------------------------------------------------------------
# measurements


def measure(job, rounds, progress) -> list[dict]:
    """Times every engine in turn; one whose hypotheses are others has no times."""
    what = f"{job.run.workdir.name}, beam {job.run.settings.decode.beam}, batch {job.batch}"
    calls = engines(job)
    task = progress.add_task(f"{what}: first answers", total=len(calls))
    answers = {}
    for name, translate in calls.items():
        answers[name] = translate()
        progress.advance(task)
    rows = []
    ended = [number for number, said in enumerate(answers[OURS]) if len(said) < job.longest]
    for name, said in answers.items():
        alike = sum(said[number] == answers[OURS][number] for number in ended)
        tokens = sum(len(answer) + 1 for answer in said)
        row = {"engine": name, "alike": alike, "compared": len(ended), "tokens": tokens}
        rows.append(row | scores(job.run, said))
    timed = {row["engine"]: calls[row["engine"]] for row in rows if counts(row)}
    seconds = interleaved(timed, rounds, progress, f"{what}: timing", warm=False)
    return [row | {"seconds": seconds.get(row["engine"])} for row in rows]


def counts(row) -> bool:
    """Says whether an engine's time counts: this project's, int8's, or its answers are the same."""
    if row["engine"] in (OURS, *INT8):
        return True
    return row["alike"] >= NEEDED * row["compared"] > 0


def scores(run, answers) -> dict:
    """Scores the answers of a run's sources by BLEU."""
    if run.tokenizer is None:
        return {}
    from layerdrop_jax.data.tokenizers import decode
    from layerdrop_jax.scores.bleu import sacre_bleu

    references = [target for _, target in encoder_decoder.spread_pairs(run, len(answers))]
    found = sacre_bleu(decode(run.tokenizer, answers), decode(run.tokenizer, references))
    return {"bleu": found.score}


def report(results) -> str:
    """Writes the text of report.md, with its tables."""
    lines = ["# Translation beside other engines", ""]
    about = results["machine"] | results["engines"]
    lines += [listed(about), ""]
    lines += [
        "Tokens of answers a second, eos counted: the median over the rounds. In brackets, how "
        "many times as fast as it this project is in float32 and, after the comma, in int8, with "
        "quartiles. Behind them, how many of the answers that end before the limit are those of "
        "this project in float32.",
        "",
    ]
    rows = results["times"]
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        names = list(dict.fromkeys(row["engine"] for row in mine))
        cases = list(dict.fromkeys((row["beam"], row["batch"]) for row in mine))
        found = {case: {} for case in cases}
        for row in mine:
            found[row["beam"], row["batch"]][row["engine"]] = row
        lines += [f"## {network}", ""]
        lines += table(
            ["", *(f"{'greedy' if b == 1 else f'beam {b}'}, batch {n}" for b, n in cases)],
            [[name, *(_cell(found[case][name], found[case]) for case in cases)] for name in names],
        )
        commands = dict.fromkeys(row["command"] for row in mine)
        lines += ["```", *commands, "```", ""]
    return "\n".join(lines)


def _cell(row, rows) -> str:
    same = f"{row['alike']} of {row['compared']} the same"
    if not row["seconds"]:
        return f"not counted: {same}"
    speed = f"{row['tokens'] / statistics.median(row['seconds']):,.0f}"
    bleu = f", BLEU {row['bleu']:.1f}" if "bleu" in row else ""
    if row["engine"] == OURS:
        return speed + bleu
    times = []
    for ours in (rows[name] for name in (OURS, OURS_INT8) if name in rows):
        if ours is not row:
            # Of tokens a second, for an engine may say more or fewer of them.
            tokens = ours["tokens"] / row["tokens"]
            times.append(shown(tuple(tokens * value for value in ratio(row, ours))))
    return f"{speed} [{', '.join(times)}]{bleu}; {same}"


if __name__ == "__main__":
    main()
