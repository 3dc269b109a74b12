"""The end of a run: the model evaluated, reported and exported."""

import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.report import RunReport, Sample, write_report
from dist_train.evaluate.suite import Evaluation, evaluate_backbone
from dist_train.export.onnx import compare_onnx, export_onnx
from dist_train.run_files import ONNX_NAME, REPORT_NAME, SUMMARY_NAME
from dist_train.track.trackers import pixels, read_metrics
from dist_train.train.loop import Trainer

logger = logging.getLogger(__name__)

SHEET_PICTURES = 24


def finish_run(trainer: Trainer, started: float) -> None:
    """Evaluate on all ranks; on rank 0 write `summary.json` and `report.html`, then export. A collective.

    The export comes last and what it gives is added, so that a network without an ONNX form does not cost the results.
    What cannot be made is noted in `trainer.lost`.

    Args:
        trainer: at its last step.
        started: `time.monotonic()` when the run began, or went on.
    """
    config, ranks = trainer.config, trainer.ranks
    backbone = trainer.evaluated_backbone()
    found = _evaluate(trainer, backbone)
    if ranks.rank == 0:
        summary = _summary(trainer, found)
        missing = _publish(trainer, summary, found, started)
        if config.export.onnx:
            try:
                summary |= _export(trainer, backbone)
            except Exception as error:  # whatever stops an exporter costs the export alone
                missing[ONNX_NAME] = str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {error}"
            else:
                missing = _publish(trainer, summary, found, started)
        trainer.lost += [f"{name}: {reason}" for name, reason in missing.items()]
        logger.info("%s", json.dumps(summary, indent=1))
        if REPORT_NAME not in missing:
            logger.info("report: %s", config.run_dir / REPORT_NAME)
    ranks.barrier()


def _evaluate(trainer: Trainer, backbone: nn.Module) -> Evaluation:
    try:
        found = evaluate_backbone(backbone, trainer.config.evaluate, trainer.loader.image_size, trainer.ranks)
    except (UserError, WorkError) as error:
        trainer.lost.append(f"the evaluation at the end: {error}")
        return Evaluation([], [])
    if figures := found.figures():
        trainer.trackers.log(trainer.step, figures)
    return found


def _export(trainer: Trainer, backbone: nn.Module) -> dict[str, float]:
    """Write the network for deployment; how far its embeddings are from the backbone's.

    Raises:
        WorkError: it has no ONNX form, or the disk refuses. An exporter may raise more than that.
    """
    config, samples = trainer.config, cast(Tensor, trainer.samples)
    exported = export_onnx(
        backbone.cpu(),
        trainer.loader.image_size,
        config.run_dir / ONNX_NAME,
        normalize_inside=config.export.normalize_inside,
        opset=config.export.opset,
        origin={"run": config.run_dir.name, "step": str(trainer.step)},
    )
    difference, cosine = compare_onnx(exported.path, backbone, samples[: config.export.check_images].cpu())
    return {"onnx_max_abs_diff": difference, "onnx_min_cosine": cosine}


def _publish(trainer: Trainer, summary: dict[str, Any], found: Evaluation, started: float) -> dict[str, str]:
    """Write summary and report; for each that could not be written the reason."""
    config, samples = trainer.config, cast(Tensor, trainer.samples)
    summary["seconds"] = round(time.monotonic() - started, 1)
    missing: dict[str, str] = {}
    try:
        _write_json(config.run_dir / SUMMARY_NAME, summary)
    except OSError as error:
        missing[SUMMARY_NAME] = f"cannot be written: {error.strerror}"
    report = RunReport(
        title=config.run_dir.name,
        summary=summary,
        history=read_metrics(config.run_dir),
        verification=found.verification,
        identification=found.identification,
        ijb=found.ijb,
        distractors=found.distractors,
        samples=[Sample(picture, "") for picture in pixels(samples[:SHEET_PICTURES])],
    )
    try:
        write_report(config.run_dir / REPORT_NAME, report)
    except WorkError as error:
        missing[REPORT_NAME] = str(error)
    return missing


def _summary(trainer: Trainer, found: Evaluation) -> dict[str, Any]:
    speeds = [line["images_per_s"] for line in read_metrics(trainer.config.run_dir) if line.get("images_per_s")]
    summary: dict[str, Any] = {
        "identities": trainer.manifest.num_classes,
        "images": trainer.manifest.samples,
        "ranks": trainer.ranks.world_size,
        "steps": trainer.step,
        "images_per_s": round(statistics.median(speeds), 1) if speeds else None,
    }
    first = next((result for result in found.verification if result.accuracy is not None), None)
    if first is not None and first.accuracy is not None and first.accuracy_std is not None:
        summary["verification_accuracy"] = round(first.accuracy, 5)
        summary["verification_accuracy_std"] = round(first.accuracy_std, 5)
        summary["tar_at_far"] = {f"{far:g}": round(tar.tar, 5) for far, tar in first.tar_at_far.items()}
    if found.identification:
        summary["rank1"] = round(found.identification[0].rank1, 5)
    if found.ijb:
        summary["ijb_tar_at_far"] = {f"{far:g}": round(tar.tar, 5) for far, tar in found.ijb[0].tar_at_far.items()}
    if found.distractors:
        first_search = found.distractors[0]
        summary["rank1_among_distractors"] = {str(n): round(share, 5) for n, share in first_search.rank1.items()}
    return summary


def _write_json(path: Path, body: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
