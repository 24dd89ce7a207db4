"""Where the numbers of a run go beside metrics.jsonl: TensorBoard, Weights & Biases, or nowhere.

A tracker has ``write(kind, step, scalars)`` and ``close()``. Another one is a class with these two
and an entry in TRACKERS.
"""

import importlib.util
import os
import pathlib
import time
import uuid

PROJECT = "layerdrop-jax"  # of Weights & Biases, where $WANDB_PROJECT names no other


class TensorBoard:
    """Writes events below RUN/tensorboard."""

    def __init__(self, run: pathlib.Path, *, step: int | None, config: dict):
        # Imported here: whoever reads a config needs the names of the trackers alone.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        del config
        self._events, self._summary = event_pb2, summary
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and its queue then blocks training.
        self._board = event_file_writer.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if step is not None:  # what was written of later steps does not count
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._event(step + 1, session_log=start)

    def _event(self, step, **content):
        event = self._events.Event(wall_time=time.time(), step=int(step), **content)
        self._board.write_event(event)

    def write(self, kind: str, step: int, scalars: dict) -> None:
        for name, value in scalars.items():
            self._event(step, summary=self._summary.scalar(f"{kind}/{name}", value))
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """Logs to one run of Weights & Biases for each run's folder; RUN/wandb/id remembers which.

    The package reads its own environment: WANDB_MODE=offline keeps everything in RUN/wandb, for
    ``wandb sync`` later.
    """

    def __init__(self, run: pathlib.Path, *, step: int | None, config: dict):
        import wandb

        folder = run / "wandb"
        folder.mkdir(exist_ok=True)
        remembered = folder / "id"
        if not remembered.exists():
            remembered.write_text(uuid.uuid4().hex, encoding="utf-8")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                name=run.resolve().name,
                id=remembered.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(run),
                config=config,
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            raise ValueError(
                f"train.tracker='wandb': {' '.join(str(error).split())}; WANDB_MODE=offline logs "
                "without a network"
            ) from None
        # Steps taken again after a kill come a second time: the package's own count refuses them.
        self._run.define_metric("*", step_metric="update")

    def write(self, kind: str, step: int, scalars: dict) -> None:
        named = {f"{kind}/{name}": value for name, value in scalars.items()}
        self._run.log({"update": step, **named})

    def close(self) -> None:
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "none": None}


def check_tracker(name: str) -> None:
    """Raises a ValueError where a tracker's package is not installed."""
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "train.tracker='wandb' needs the package wandb: pip install wandb, or take "
            "train.tracker='tensorboard'"
        )
