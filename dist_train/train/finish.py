"""The end of a run: the model evaluated, reported and exported."""

import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

from dist_train.checkpoint.compatibility import COMPATIBLE_KEY, compatible_with
from dist_train.checkpoint.load import found_checkpoint
from dist_train.config import RunConfig
from dist_train.data.aligner import ALIGNER_KEY
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.calibration import WEIGHTS_KEY
from dist_train.evaluate.report import RunReport, Sample, write_report
from dist_train.evaluate.suite import Evaluation, evaluate_backbone
from dist_train.objectives.build import every_objective
from dist_train.run_files import ONNX_NAME, REPORT_NAME, SUMMARY_NAME
from dist_train.runtime import extras
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.written import write_json
from dist_train.start.head import START_FIGURES
from dist_train.track.trackers import Trackers, pixels, read_metrics
from dist_train.train.outcome import Outcome
from dist_train.weights.digest import digest_weights

logger = logging.getLogger(__name__)

SHEET_PICTURES = 24


def finish_run(config: RunConfig, outcome: Outcome, ranks: Ranks, trackers: Trackers, started: float) -> list[str]:
    """Evaluate on all ranks; on rank 0 write `summary.json` and `report.html`, then export. A collective.

    The export comes last and what it gives is added, so that a network without an ONNX form does not cost the results.

    Args:
        config: the whole recipe.
        outcome: what was trained.
        ranks: this process among the job's.
        trackers: of the evaluation's figures.
        started: `time.monotonic()` when the run began, or went on.

    Returns:
        What could not be made, a line each.
    """
    wait = ranks.long_wait()  # for rank 0, whose report and export may take longer than any step
    lost: list[str] = []
    try:
        found = evaluate_backbone(outcome.backbone, config.evaluate, outcome.image_size, ranks, outcome.aligner)
    except (UserError, WorkError) as error:
        lost.append(f"the evaluation at the end: {error}")
        found = Evaluation([], [])
    if figures := found.figures():
        trackers.log(outcome.step, figures)
    if ranks.rank == 0:
        summary = _summary(config, outcome, found, ranks.world_size)
        report = RunReport(
            title=config.run_dir.name,
            summary=summary,
            history=read_metrics(config.run_dir),
            verification=found.verification,
            identification=found.identification,
            ijb=found.ijb,
            distractors=found.distractors,
            phases=[phase.at for phase in config.phases],
            knn=found.knn,
            all_pairs=found.all_pairs,
            groups=found.groups,
            quality=found.quality,
            retrieval=found.retrieval,
            samples=[Sample(picture, "") for picture in pixels(outcome.samples[:SHEET_PICTURES])],
        )
        missing = _publish(config.run_dir, report, started)
        if config.export.onnx:
            try:
                summary |= _export(config, outcome)
            except Exception as error:  # whatever stops an exporter costs the export alone
                missing[ONNX_NAME] = str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {error}"
            else:
                missing = _publish(config.run_dir, report, started)
        lost += [f"{name}: {reason}" for name, reason in missing.items()]
        logger.info("%s", json.dumps(summary, indent=1))
        if lack := extras.missing("report"):
            logger.info("no %s: its plots are an extra; it %s", REPORT_NAME, lack)
        elif REPORT_NAME not in missing:
            logger.info("report: %s", config.run_dir / REPORT_NAME)
    wait()
    return lost


def _export(config: RunConfig, outcome: Outcome) -> dict[str, float]:
    """Write the network for deployment; how far its embeddings are from the backbone's.

    Raises:
        WorkError: it has no ONNX form, or the disk refuses. An exporter may raise more than that.
    """
    from dist_train.export.onnx import compare_onnx, export_onnx

    backbone = outcome.backbone.cpu()
    stated = {COMPATIBLE_KEY: older} if (older := _compatible_with(config)) else {}
    if outcome.aligner is not None:
        stated[ALIGNER_KEY] = outcome.aligner.to_text()
    exported = export_onnx(
        backbone,
        outcome.image_size,
        config.run_dir / ONNX_NAME,
        normalize_inside=config.export.normalize_inside,
        opset=config.export.opset,
        origin={"run": config.run_dir.name, "step": str(outcome.step), WEIGHTS_KEY: digest_weights(backbone)} | stated,
    )
    difference, cosine = compare_onnx(exported.path, backbone, outcome.samples[: config.export.check_images].cpu())
    return {"onnx_max_abs_diff": difference, "onnx_min_cosine": cosine}


def _compatible_with(config: RunConfig) -> str:
    """SHA-256 of the older network that the run's last checkpoint was trained to be compatible with; empty for none."""
    if "compatible_with" not in every_objective(config):
        return ""
    try:
        return compatible_with(found_checkpoint(config.run_dir))
    except (UserError, WorkError):  # the checkpoint could not be written, which is said elsewhere
        return ""


def _publish(run_dir: Path, report: RunReport, started: float) -> dict[str, str]:
    """Reasons why the summary or the report could not be written, by the names of their files; {} where both are."""
    report.summary["seconds"] = round(time.monotonic() - started, 1)
    missing: dict[str, str] = {}
    try:
        write_json(run_dir / SUMMARY_NAME, report.summary)
    except OSError as error:
        missing[SUMMARY_NAME] = f"cannot be written: {error.strerror}"
    if extras.missing("report"):  # said at the end, once
        return missing
    try:
        write_report(run_dir / REPORT_NAME, report)
    except WorkError as error:
        missing[REPORT_NAME] = str(error)
    return missing


def _summary(config: RunConfig, outcome: Outcome, found: Evaluation, world_size: int) -> dict[str, Any]:
    history = read_metrics(config.run_dir)
    speeds = [line["images_per_s"] for line in history if line.get("images_per_s")]
    summary: dict[str, Any] = {
        "identities": outcome.identities,
        "images": outcome.images,
        "ranks": world_size,
        "steps": outcome.step,
        "images_per_s": round(statistics.median(speeds), 1) if speeds else None,
    }
    started = {key: value for line in history[:1] for key, value in line.items() if key.startswith(START_FIGURES)}
    if started:
        summary["start"] = {key.removeprefix(START_FIGURES): value for key, value in started.items()}
    if older := _compatible_with(config):
        summary[COMPATIBLE_KEY] = older
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
    if found.knn:
        summary["knn_accuracy"] = round(found.knn[0].accuracy, 5)
    if found.retrieval:
        summary["map"] = round(found.retrieval[0].figures.mean_ap, 5)
    if found.all_pairs:
        points = [point for point in found.all_pairs[0].points if point.resolved]
        summary["fnmr_at_fmr"] = {f"{point.fmr:g}": round(point.fnmr, 5) for point in points}
    return summary
