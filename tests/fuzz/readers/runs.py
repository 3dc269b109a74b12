"""Run directories: figures, notes and checkpoints."""

import os
import tempfile
from functools import lru_cache
from pathlib import Path

from dist_train.checkpoint.cli import describe_checkpoint
from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints, damage, prune, read_best, remove_pruned, write_best
from dist_train.data.bad_samples import BadSample, BadSampleLog
from dist_train.evaluate.report import RunReport, write_report
from dist_train.run_files import BAD_SAMPLES_NAME, JOB_NAME, SLURM_JOBS_NAME, SUMMARY_NAME
from dist_train.runtime.written import write_json
from dist_train.track.trackers import JsonlTracker, read_metrics
from dist_train.weights.centers import plain_centers
from launch.rank import begun_before
from launch.status import jobs_of, run_state
from tests.fuzz.formats import JSON, PICKLE, YAML
from tests.fuzz.mutations import BYTES, TEXT
from tests.fuzz.reader import Reader, Scene, each_target, files_in
from tests.sets import write_set
from tests.single import trainer

NOW_S = 2_000_000_000.0
STEP = "checkpoints/step-00000002"


@lru_cache
def run_files() -> dict[str, bytes]:
    """A run of two steps, with a checkpoint, figures and notes."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        write_set(base / "set", classes=4, views=3, size=32, shard_samples=6)
        sizes = {"train__steps": 2, "train__global_batch_size": 8, "train__micro_batch_size": 8}
        run = trainer(base, base / "set", checkpoint__every_steps=2, **sizes)
        run.fit()
        run.close()
        files = files_in(base / "run")
    files["checkpoints/best.json"] = b'{"step": 2, "score": 0.5}'
    lines = [b'{"step": %d, "loss": 2.5, "images_per_s": 24.5, "epoch": 0.5, "lr": 0.1}' % n for n in range(1, 6)]
    files["metrics.jsonl"] = b"\n".join([*lines, b'{"step": 5, "verification/lfw/accuracy": 0.9}', b""])
    files[SUMMARY_NAME] = b'{"identities": 4, "steps": 2, "images_per_s": 24.5}'
    files[BAD_SAMPLES_NAME] = b'{"shard": "x-000000.tar", "key": "00000001", "reason": "no label", "position": 1}\n'
    files[SLURM_JOBS_NAME] = b"101\n102\n"
    files[JOB_NAME] = b"slurm-101"
    return {name: data for name, data in files.items() if not name.endswith("lock")}


def _few(*targets: str) -> list[Scene]:
    """The run without its tensors, which status does not read."""
    files = {name: data for name, data in run_files().items() if not name.endswith(".distcp")}
    return each_target(files, *targets)


def _read_status(home: Path) -> None:
    str(run_state(home, NOW_S))
    read_best(home)


def _resume_figures(home: Path) -> None:
    tracker = JsonlTracker(home, resume_step=4)
    tracker.log(5, {"loss": 1.0})
    read_metrics(home)


def _report(home: Path) -> None:
    write_report(home / "report.html", RunReport("run", {"steps": 4}, history=read_metrics(home)))


def _look_after(home: Path) -> None:
    for checkpoint in committed_checkpoints(home):
        damage(checkpoint)
    write_best(home, 3, 0.7) if read_best(home) is None else None
    remove_pruned(prune(home, keep=1))


def _read_results(home: Path) -> None:
    """A run beside its damaged results: they are looked for, and added to or written anew, whatever is in them."""
    str(run_state(home, NOW_S))
    bad = BadSample(7, "x-000000.tar", "00000007", "not a picture")
    BadSampleLog(home / BAD_SAMPLES_NAME, 1.0, 100).add(10, [bad])
    write_json(home / SUMMARY_NAME, {"steps": 2})


def _read_notes(home: Path) -> None:
    jobs_of(home)
    begun_before(home, "slurm-102", resume=False)


def _read_checkpoint(home: Path) -> None:
    (checkpoint,) = committed_checkpoints(home)
    describe_checkpoint(checkpoint)
    _, config, _ = load_backbone(home)
    list(plain_centers(checkpoint, config).blocks)


def _checkpoint_files(*suffixes: str) -> list[Scene]:
    files = run_files()
    return each_target(files, *(name for name in files if name.startswith(STEP) and name.endswith(suffixes)))


os.environ.setdefault("TQDM_DISABLE", "1")
READERS = (
    Reader("metrics.jsonl", lambda: _few("metrics.jsonl"), _read_status, JSON),
    Reader("metrics resumed", lambda: _few("metrics.jsonl"), _resume_figures, JSON),
    Reader("metrics report", lambda: _few("metrics.jsonl"), _report, JSON, weight=0.1),
    Reader("stored config", lambda: _few("config.yaml"), _read_status, YAML),
    Reader("progress.json", lambda: _few(f"{STEP}/progress.json"), _read_status, JSON),
    Reader("best, checksums", lambda: _few("checkpoints/best.json", f"{STEP}/checksums-0.json"), _look_after, JSON),
    Reader("results", lambda: _few(SUMMARY_NAME, BAD_SAMPLES_NAME), _read_results, JSON, weight=0.1),
    Reader("notes of jobs", lambda: _few(SLURM_JOBS_NAME, JOB_NAME), _read_notes, TEXT),
    Reader("checkpoint .metadata", lambda: _checkpoint_files(".metadata"), _read_checkpoint, PICKLE),
    Reader("checkpoint tensors", lambda: _checkpoint_files(".distcp"), _read_checkpoint, BYTES),
)
