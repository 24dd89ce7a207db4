"""A project in a temporary folder whose launch.py only pretends to train, for tests of the studies.

It takes steps and saves every third, goes on from there when it is started again, and ends between
two steps when it is told to. What comes out depends on its config alone: `expected` has it.
"""

import json
import pathlib

from layerdrop_jax.studies import engine, jobs
from layerdrop_jax.studies.jobs import Command, Job
from tests.tiny_run import tiny_lm_config, write_config_file

EVERY = 3  # steps from one save to the next

# Of the config, for the tests alone: pause, seconds of a step; fail, the step that always fails;
# stumble, it fails after every save; meet, a file that must appear before the first step.
LAUNCH = """
import fcntl, json, os, pathlib, signal, sys, time

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
run = pathlib.Path(given.get("output") or given["workdir"])
run.mkdir(parents=True, exist_ok=True)
metrics, state = run / "metrics.jsonl", run / "state.json"
lock = (run / "lock").open("a")
fcntl.flock(lock, fcntl.LOCK_EX)  # its predecessor may be saving itself still

def note(path, **line):
    with path.open("a") as file:
        file.write(json.dumps(line) + "\\n")

environment = {k: v for k, v in os.environ.items() if "VISIBLE" in k or k.startswith("TPU_")}
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
note(run / "starts.jsonl", pid=os.getpid(), cores=cores, environment=environment, flags=given)
if given.get("mode", "train") not in ("train", "finetune"):
    note(metrics, kind="subset", step=0, value=json.loads(state.read_text())["value"])
    sys.exit(0)
config = json.loads(pathlib.Path(__file__).with_name("base.json").read_text())
for name, text in given.items():
    *sections, key = name.removeprefix("config.").split(".")
    node = config
    for section in sections:
        node = node.get(section, {})
    if name.startswith("config.") and key in node:
        node[key] = type(node[key])(text)
# As launch.py does: whoever looks at the run meanwhile finds a whole file.
(run / "config.json.partial").write_text(json.dumps(config))
(run / "config.json.partial").replace(run / "config.json")
(run / "checkpoints").mkdir(exist_ok=True)
now = json.loads(state.read_text()) if state.exists() else {"step": 0, "value": config["seed"]}
lines = metrics.read_text().split("\\n")[:-1] if metrics.exists() else []
lines = [line + "\\n" for line in lines if json.loads(line)["step"] <= now["step"]]
metrics.with_suffix(".partial").write_text("".join(lines))
metrics.with_suffix(".partial").replace(metrics)
limit = time.monotonic() + 900  # of no import of Python, on whatever machine
while "config.meet" in given and not pathlib.Path(given["config.meet"]).exists():
    if time.monotonic() > limit:
        sys.exit("launch.py: nobody came")
    time.sleep(0.01)
while now["step"] < config["train"]["steps"]:
    time.sleep(float(given.get("config.pause", 0)))
    step = now["step"] + 1
    if given.get("config.fail") == str(step):
        sys.exit("launch.py: it broke")
    value = (31 * now["value"] + step + int(100 * config["drop"]["decoder"])) % 65521
    now = {"step": step, "value": value}
    note(metrics, kind="train", step=step, loss=value / 1000, seconds=1.0)
    if step % 3 == 0 or step == config["train"]["steps"] or told:
        state.with_suffix(".partial").write_text(json.dumps(now))
        state.with_suffix(".partial").replace(state)
        (run / "checkpoints" / str(step)).mkdir(exist_ok=True)
        if "config.stumble" in given:
            sys.exit("launch.py: it stumbled")
    if told:
        sys.exit(75)
value = now["value"]
score = {"perplexity": 10 + value / 1000, "nats": 1.0, "tokens": 100}
note(metrics, kind="test", step=now["step"], split="test", **score)
for kept in (1, 2):
    score = {"perplexity": 10 + value / 1000 / kept, "parameters": 100 * kept}
    note(metrics, kind="depth", step=now["step"], decoder_layers=list(range(kept)), **score)
"""


def make(root: pathlib.Path, monkeypatch) -> pathlib.Path:
    """Makes the project below a folder and lets the studies run there, looking often."""
    (root / "launch.py").write_text(LAUNCH)
    config = tiny_lm_config(root / "text", train={"steps": 6, "eval_every": 4, "log_every": 1})
    (root / "base.json").write_text(json.dumps(config))
    write_config_file(root / "config.py", config)
    monkeypatch.setattr(engine, "ROOT", root)
    monkeypatch.setattr(jobs, "ROOT", root)
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_LOOKS", 0.02)
    return root


def job(folder, name: str, *, seed: int = 1, steps: int = 6, after: str = "", **more) -> Job:
    """Makes a job of one training; ``more`` is what `LAUNCH` knows beside the config's own keys."""
    overrides = {"seed": seed, "train.steps": steps, **more}
    train = Command(folder / name, config="config.py", overrides=overrides)
    return Job(name, name, seed, folder / name, (train,), after)


def starts(workdir) -> list[dict]:
    """Reads what a run noted of each of its starts."""
    path = workdir / "starts.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(workdir) -> list[tuple[int, float]]:
    """Reads (step, loss) of a run's lines."""
    lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    found = map(json.loads, lines)
    return [(line["step"], line["loss"]) for line in found if line["kind"] == "train"]


def expected(seed: int, steps: int, rate: float = 0.2) -> list[tuple[int, float]]:
    """Computes the `losses` of a run that nothing disturbs."""
    value, found = seed, []
    for step in range(1, steps + 1):
        value = (31 * value + step + int(100 * rate)) % 65521
        found.append((step, value / 1000))
    return found
