"""A small record of a study, for the tests of what is drawn from it."""

import copy

RECORD = {
    "name": "figure6_rates",
    "title": "Figure 6: rates",
    "variant": "demo",
    "command": "python -m experiments.figure6_rates --workdir=RUNS",
    "setting": "pystdlib, 4 layers",
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "claims": [
        {"paper": "higher rates win when small", "ours": "51 against 90", "agrees": True},
        {"paper": "it helps when whole", "ours": "it costs 6", "agrees": False},
        {"paper": "search beats rules", "ours": "one seed", "agrees": None},
        {"paper": "deeper is better", "ours": "the seeds overlap", "agrees": "noise"},
    ],
    "tables": [
        {
            "title": "Full depth",
            "score": "test perplexity",
            "better": "lower",
            "format": ",.2f",
            "rows": [
                {"name": "LayerDrop 0", "paper": 30.2, "values": [1031.0, 1030.0], "seeds": [1, 2],
                 "parameters": 1234567, "minutes": [3.0, 5.0], "hardware": "1 core",
                 "commands": ["python launch.py --a", "python launch.py --b"]},
                {"name": "LayerDrop 0.2", "paper": "18.3", "values": [35.5], "seeds": [1],
                 "parameters": 1234567, "minutes": [2.5], "hardware": "1 core",
                 "commands": ["python launch.py --c"]},
            ],
        }
    ],
    "figures": [
        {"name": "rates", "title": "Rates", "x": "layers kept", "y": "valid perplexity",
         "log": True, "kind": "lines",
         "curves": [
             {"label": "LayerDrop 0", "points": [[2, [30.0, 32.0]], [1, [400.0, 500.0]]]},
             {"label": "LayerDrop 0.5", "points": [[1, [90.0]], [2, [50.0]]]},
         ]},
    ],
    "runs": [
        {"run": "rate_0", "seed": 1, "minutes": 3.0, "hardware": "1 core", "commands": []},
        {"run": "rate_0", "seed": 2, "minutes": 5.0, "hardware": "1 core", "commands": []},
        {"run": "rate_0.2", "seed": 1, "minutes": 2.5, "hardware": "8 x H100", "commands": []},
    ],
    "failed": [],
}  # fmt: skip


def record(**changes) -> dict:
    """The record with some entries changed."""
    return copy.deepcopy(RECORD) | changes
