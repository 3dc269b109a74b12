"""The end of a run: the model evaluated, exported and reported."""

import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from dist_train.evaluate.report import RunReport, Sample, write_report
from dist_train.evaluation import Evaluation, evaluate_backbone
from dist_train.export.onnx import compare_onnx, export_onnx
from dist_train.trackers import pixels, read_metrics
from dist_train.trainer import Trainer

logger = logging.getLogger(__name__)

SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"
ONNX_NAME = "model.onnx"
SHEET_PICTURES = 24


def finish_run(trainer: Trainer, started: float) -> None:
    """Evaluate on all ranks; on rank 0 export, and write `summary.json` and `report.html`. A collective.

    Args:
        trainer: at its last step.
        started: `time.monotonic()` when the run began, or went on.
    """
    config, ranks, samples = trainer.config, trainer.ranks, cast(Tensor, trainer.samples)
    backbone = trainer.evaluated_backbone()
    found = evaluate_backbone(backbone, config.evaluate, trainer.loader.image_size, ranks)
    if figures := found.figures():
        trainer.trackers.log(trainer.step, figures)
    if ranks.rank == 0:
        summary = _summary(trainer, found)
        if config.export.onnx:
            path = config.run_dir / ONNX_NAME
            exported = export_onnx(
                backbone.cpu(),
                trainer.loader.image_size,
                path,
                normalize_inside=config.export.normalize_inside,
                opset=config.export.opset,
                origin={"run": config.run_dir.name, "step": str(trainer.step)},
            )
            images = samples[: config.export.check_images].cpu()
            summary["onnx_max_abs_diff"], summary["onnx_min_cosine"] = compare_onnx(exported.path, backbone, images)
        summary["seconds"] = round(time.monotonic() - started, 1)
        _write_json(config.run_dir / SUMMARY_NAME, summary)
        write_report(
            config.run_dir / REPORT_NAME,
            RunReport(
                title=config.run_dir.name,
                summary=summary,
                history=read_metrics(config.run_dir),
                verification=found.verification,
                identification=found.identification,
                samples=[Sample(picture, "") for picture in pixels(samples[:SHEET_PICTURES])],
            ),
        )
        logger.info("%s", json.dumps(summary, indent=1))
        logger.info("report: %s", config.run_dir / REPORT_NAME)
    ranks.barrier()


def _summary(trainer: Trainer, found: Evaluation) -> dict[str, Any]:
    speeds = [line["images_per_s"] for line in read_metrics(trainer.config.run_dir) if "images_per_s" in line]
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
    return summary


def _write_json(path: Path, body: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
