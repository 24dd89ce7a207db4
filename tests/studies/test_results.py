"""What is read from the folders of runs, and the parts of a record."""

import json
import shlex

import pytest

from layerdrop_jax.runs.folder import write_config
from layerdrop_jax.studies import results
from layerdrop_jax.studies.jobs import Command, Job, argv
from layerdrop_jax.studies.results import Result

LM, MT = "language_modelling", "translation"


def depth(layers, score, key="perplexity", **more):
    size = {"parameters": 100 * len(layers)}
    return {"kind": "depth", "step": 9, "decoder_layers": layers, key: score} | size | more


def result(*records, task=LM, seed=1, commands=("python launch.py",)):
    return Result("net", seed, {"task": task}, list(records), "folder", commands)


def test_a_job_that_is_done_is_read_from_its_folder(tmp_path):
    folder = tmp_path / "my runs"
    commands = (
        Command(folder, config="configs/wmt.py:demo"),
        Command(folder, "evaluate", layers={"decoder": "all;first:2"}, changes={"a": '"$b"'}),
    )
    write_config(tmp_path, {"task": "translation", "seed": 3})
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start", "step": 0}\n{"kind": "tr')
    found = results.read(Job("net_seed_3", "net", 3, tmp_path, commands, ""))
    assert (found.run, found.seed, found.config["seed"], found.workdir) == ("net", 3, 3, tmp_path)
    assert found.records == [{"kind": "start", "step": 0}]
    assert results.task_score(found).label == "BLEU"
    assert (
        found.commands[0] == f"python launch.py --workdir='{folder}' --config=configs/wmt.py:demo"
    )
    assert [tuple(shlex.split(text)[1:]) for text in found.commands] == [*map(argv, commands)]
    assert argv(commands[1])[2:] == (
        *("--mode=evaluate", "--decoder_layers=all;first:2"),
        '--set=a="$b"',
    )


def test_what_a_program_wrote_has_no_config(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({}))
    program = Command(tmp_path, program=("-m", "speed"))
    found = results.read(Job("speed", "speed", 1, tmp_path, (program,), ""))
    command = f"python -m speed --out={tmp_path}"
    assert (found.config, found.records, found.commands) == ({}, [], (command,))
    assert results.trained(found)["minutes"] == 0


def test_the_last_score_of_the_whole_network_counts():
    lines = [
        {"kind": "test", "step": 9, "split": split, "perplexity": score}
        for split, score in (("valid", 8.0), ("test", 9.0), ("valid", 6.0), ("test", 7.0))
    ]
    lines += [{"kind": "test", "step": 9, "split": "test", "perplexity": None}]  # not finite
    assert results.whole(result(*lines)) == 7.0
    assert results.whole(result({"kind": "test", "step": 9, "bleu": 21.0}, task=MT)) == 21.0
    assert results.whole(result(depth([0], 3.0))) is None


def test_the_last_score_of_a_depth_counts():
    lines = [depth([0, 1], 9.0), depth([1], 4.0), depth([1], 6.0), depth([], None)]
    assert results.depths(result(*lines)) == {1: 6.0, 2: 9.0}
    assert list(results.depths(result(*lines))) == [1, 2]
    assert results.cut_to(1)(result(*lines)) == 6.0
    assert results.cut_to(3)(result(*lines)) is None
    found = [result(*lines), result(), result(depth([0], 5.0, "bleu"), task=MT)]
    assert results.scores(found, results.cut_to(1)) == [6.0, 5.0]


def test_what_a_run_took():
    lines = [{"kind": "start", "step": 0, "hardware": "1 core"}]
    lines += [{"kind": "train", "step": n, "seconds": 90.0} for n in (1, 2)]
    lines += [{"kind": "test", "step": 2, "seconds": 1000.0}, depth([0, 1], 3.0), depth([0], 4.0)]
    found = result(*lines)
    assert results.minutes(found) == 3.0
    assert results.hardware(found) == "1 core"
    assert results.hardware(result({"kind": "start", "step": 0})) == ""
    assert (results.parameters(found), results.parameters(found, 1)) == (200, 100)
    assert results.parameters(result()) is None
    assert results.trained(found) == {
        **{"run": "net", "seed": 1, "minutes": 3.0, "hardware": "1 core"},
        "commands": ["python launch.py"],
    }


def test_the_choice_of_a_strategy_is_that_made_last():
    lines = [
        {"kind": "subset", "decoder_strategy": name, "value": value}
        for name, value in (("first:2", 1), ("last:2", 2), ("first:2", 3))
    ]
    assert results.chosen(result(*lines), "first:2")["value"] == 3
    assert results.chosen(result(*lines), "all") is None
    assert results.chosen(result(*lines), "first:2", "encoder") is None


def score(of):
    return results.depths(of).get(2)


def test_a_row_has_a_value_for_each_seed_that_has_one():
    start = {"kind": "start", "step": 0, "hardware": "1 core"}
    found = [
        result(start, depth([0, 1], 3.0), seed=1, commands=("a", "b")),
        result(start, seed=2, commands=("c",)),
        result(start, depth([0, 1], 5.0), depth([0], 9.0), seed=3, commands=("b", "d")),
    ]
    assert results.row("mine", found, score, paper=4.5) == {
        **{"name": "mine", "paper": 4.5, "values": [3.0, 5.0], "seeds": [1, 3]},
        **{"parameters": 200, "minutes": [0, 0], "hardware": "1 core"},
        "commands": ["a", "b", "d"],
    }
    assert results.row("mine", found, score, size=lambda _: 7)["parameters"] == 7


def test_a_row_without_any_score_is_left_out_unless_the_paper_has_one():
    assert results.row("mine", [], score) is None
    assert results.row("mine", [result()], score) is None
    row = results.row("mine", [], score, paper="diverges")
    assert (row["paper"], row["values"], row["parameters"]) == ("diverges", [], None)
    assert results.table("T", "BLEU", "higher", [None, row])["rows"] == [row]


def test_a_curve_over_depth_has_the_depths_that_all_seeds_have():
    found = [
        result(depth([0, 1], 3.0), depth([0], 6.0)),
        result(depth([0], 8.0), depth([0, 1], 5.0), depth([0, 1, 2], 1.0)),
    ]
    assert results.by_depth("net", found) == {
        "label": "net",
        "points": [[1, [6.0, 8.0]], [2, [3.0, 5.0]]],
    }
    assert results.by_depth("net", []) is None
    assert results.by_depth("net", [found[0], result()]) is None
    assert results.curve("net", {1: [], 2: [3.0]}) == {"label": "net", "points": [[2, [3.0]]]}
    drawn = results.figure("f", "F", "x", "y", [None, {"label": "a"}], log=True)
    # A curve without points leaves its colour free.
    curves = [{"label": "a", "look": 1}]
    assert (drawn["curves"], drawn["log"], drawn["kind"]) == (curves, True, "lines")


@pytest.mark.parametrize(
    ("first", "second", "better", "agrees"),
    [
        ([3.0, 3.5], [4.0, 4.5], "lower", True),
        ([4.0, 4.5], [3.0, 3.5], "lower", False),
        ([3.0, 4.0], [4.5], "higher", False),
        ([4.5], [4.0, 3.0], "higher", True),
        ([3.0, 4.0], [3.5, 5.0], "lower", "noise"),  # the seeds overlap
        ([3.0], [3.0], "lower", "noise"),
        ([], [3.0], "higher", None),
        ([3.0], [], "lower", None),
    ],
)
def test_a_claim_is_that_the_first_score_is_better_in_all_seeds(first, second, better, agrees):
    claim = results.compare("it helps", {"with": first, "without": second}, better, figure="f")
    assert claim["agrees"] == agrees
    assert (claim["paper"], claim["figure"]) == ("it helps", "f")
    assert claim["ours"].startswith("with: " if first else "with: -, without: 3.00")
    assert ("within the range" in claim["ours"]) == (first == [3.0, 4.0] and agrees == "noise")


def test_a_mean_of_none_is_none():
    assert results.mean([1.0, 4.0]) == 2.5
    assert results.mean([]) is None
