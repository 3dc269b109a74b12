"""Pages with everything that a page may hold, made of invented results; `python -m tests.browser.example DIRECTORY`."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch

from dist_train.clean.cores import find_cores
from dist_train.clean.finding import SCHEMA, Findings
from dist_train.clean.sheet import write_sheet
from dist_train.evaluate.all_pairs import AllPairsResult
from dist_train.evaluate.curves import Histogram, Roc
from dist_train.evaluate.group_results import Differential, Group, GroupsResult
from dist_train.evaluate.operating_points import FMRS, OperatingPoint
from dist_train.evaluate.plots import Line, plot_lines
from dist_train.evaluate.quality import SHARES, QualityResult, Stairs
from dist_train.evaluate.rates import Rate
from dist_train.evaluate.report import RunReport, Sample, write_comparison, write_page, write_report
from dist_train.evaluate.retrieval import KS, RetrievalFigures
from dist_train.evaluate.retrieval_set import Example, Found, RetrievalResult
from dist_train.evaluate.sections import Section
from dist_train.evaluate.shown_pictures import PictureRow, shown
from dist_train.evaluate.tables import ModelScores
from dist_train.head.config import HeadConfig
from launch.plan_hardware import GPUS, BackboneCost
from launch.plan_model import Setup
from launch.plan_timeline import write_timeline

LONG = "a-run-of-a-very-long-name/with-many-settings/lr-0.1-margin-0.5-seed-17/checkpoint-000120000"
MODELS = ("r50", LONG)
GROUPS = ("Bhutan", "Canada", "Zimbabwe", "Republic of a group with a long name", "Peru", "Oman", "Togo")


def picture(number: int, side: int = 48) -> bytes:
    """A PNG of one colour with a figure, another for each number."""
    pixels = np.full((side, side, 3), [(number * 53) % 256, (number * 97) % 256, 140], np.uint8)
    cv2.putText(pixels, str(number), (6, side // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
    return cv2.imencode(".png", pixels)[1].tobytes()


def scores(name: str, factor: float) -> ModelScores:
    """A model's results of every kind that is made of a labelled set; the factor is how bad they are."""
    errors = {fmr: min(1.0, 0.004 * factor * fmr**-0.35) for fmr in FMRS}
    points = [
        OperatingPoint(fmr, 0.2 - 0.05 * np.log10(fmr), 0.98 * fmr, fnmr, 0.8 * fnmr, min(1, 1.2 * fnmr), fmr > 1e-6)
        for fmr, fnmr in errors.items()
    ]
    far = np.logspace(-6, 0, 50)
    curve = Roc(far, 1 - np.clip(0.004 * factor * far**-0.35, 0, 1), np.linspace(1, -1, 50))
    bell = np.exp(-(np.linspace(-3, 3, 30) ** 2))
    spread = Histogram(np.linspace(-1, 1, 31), np.roll(bell, 6) / bell.sum(), bell / bell.sum(), None)
    counts = {"pictures": 50_000, "identities": 5_000, "genuine_pairs": 225_000, "impostor_pairs": 1_249_750_000}
    pairs = AllPairsResult(
        "own", points=tuple(points), searched=9, rank1=0.9, rank5=1, curve=curve, spread=spread, **counts
    )
    rates = [Rate(round(factor * 7**i), 3_000_000, (1e-5 * 3**i) ** 2, 400) for i in range(len(GROUPS))]
    groups = [
        Group(each, 1_234, 100, rate, Rate(30 * i, 9_000, 1e-6, 90), 1e-9 if i == 6 else 0.4)
        for i, (each, rate) in enumerate(zip(GROUPS, rates, strict=True))
    ]
    across = {(one, other): Rate(i, 90_000, 1e-10, 90) for i, one in enumerate(GROUPS) for other in GROUPS[i + 1 :]}
    differential = Differential(112.5 * factor, 0.61)
    shares = np.linspace(0, 0.9, 300)
    stairs = Stairs(shares, 0.03 * factor * (1 - shares) ** 2)
    found = [Found(picture(i, 700 if i == 3 else 48), 0.9 - 0.05 * i, i % 3 != 1) for i in range(8)]
    figures = RetrievalFigures(dict.fromkeys(KS, 0.9 / factor), 0.71, 0.64, 0.66, 0.23)
    return ModelScores(
        name,
        all_pairs=[pairs],
        groups=[GroupsResult(
            "own", "birthplace", 1e-3, 0.31, rates[1], rates[2], tuple(groups), across, {}, differential, differential,
            ("own: 12 pictures have no birthplace, and are in no group",),
        )],
        quality=[QualityResult(
            "own", "norm", 1e-3, 0.31, 0.03 * factor, stairs, dict.fromkeys(SHARES, 0.01), 0.004, 0.8, (0.7, 0.9), 0.2,
            50_000, 225_000,
        )],
        retrieval=[RetrievalResult(
            "products", figures, None, 60_502, 3, 60_501, 11_316, None, [Example(picture(60), 0.31, found)] * 2
        )],
    )  # fmt: skip


def forms() -> list[Section]:
    """What parts of pages can be beyond those."""
    lines = [Line(f"model {i}", [0, 1], [i, i + 1], [i - 0.2, i + 0.8], [i + 0.2, i + 1.2]) for i in range(6)]
    chance = Line("by chance", [0, 1], [0, 0], reference=True)
    return [
        Section("Lines", plots=[[
            plot_lines("Six models", "x", "y", [*lines, chance], points=True),
            plot_lines("A logarithm", "x", "y", [Line("0 and more", [1e-3, 1e-2, 1e-1], [0, 1e-4, 1e-2])], log_y=True),
            plot_lines("Without any error", "x", "y", [Line("a", [0, 1], [0, 0])], log_y=True),
        ]]),
        Section("Pictures", "Lowest first.", pictures=[shown(picture(i), f"0.{i} of a long name") for i in range(9)]),
        Section("Cannot be read", rows=[PictureRow(shown(b"no picture", "gone"), [])]),
    ]  # fmt: skip


def write_findings(path: Path) -> None:
    """Write a sheet of findings about twelve pictures of three people; two pictures cannot be read."""
    cores = find_cores(torch.eye(4).repeat(3, 1)[:, :3].add(0.1), torch.arange(12) // 4, 3)
    said = {"score": 0.5, "evidence": "cosine 0.12 to the others, 0.62 to those", "cosine": 0.12, "certainty": 0.9}
    faults = [
        {"kind": "outlier", "rows": [1], "labels": [0], "near_label": 2, "near_name": "Ann"},
        {"kind": "merge", "rows": [0, 4], "labels": [0, 1]},
        {"kind": "duplicate", "rows": [9, 8], "labels": [2, 2]},
        {"kind": "test", "rows": [11], "labels": [2]},
    ]
    rows = [
        said | fault | {"number": number, "keys": [f"{LONG}/{row}" for row in fault["rows"]],
                        "names": [LONG if label == 0 else "Ann" for label in fault["labels"]]}
        for number, fault in enumerate(faults)
    ]  # fmt: skip
    findings = Findings(pa.Table.from_pylist(rows, schema=SCHEMA), {"set": {"digest": "0"}})
    write_sheet(path, LONG, findings, cores, lambda row: picture(row) if row % 8 else b"", ["thresholds are cosines"])


def planned() -> Setup:
    """A job with work in every lane of a timeline."""
    return Setup(
        identities=10**8,
        gpus=64,
        gpus_per_node=8,
        gpu=GPUS["h100"],
        memory_gib=80,
        network_gb_s=25,
        backbone=BackboneCost(
            parameters=65_000_000, buffers=60_000, macs=12 * 10**9, saved=27 * 10**6, peak=28 * 10**6
        ),
        embedding_dim=512,
        image_size=112,
        batch=128,
        accumulation=3,
        half=True,
        strategy="zero2",
        moments=1,
        head=HeadConfig(sample_rate=0.1, storage="host"),
    )


def write_examples(directory: Path) -> list[Path]:
    """Write pages: results of several models, other forms, the report of a run, a sheet of findings, a plan."""
    names = ("results", "forms", "run", "findings", "plan")
    results, other, run, findings, plan = (directory / f"{name}.html" for name in names)
    write_comparison(results, "Evaluation", [scores(name, 1 + 0.5 * i) for i, name in enumerate(MODELS)])
    tiles = [("98.31 %", f"verification accuracy ± 0.41, {LONG}"), ("3.338e-06", "largest ONNX difference")]
    write_page(other, LONG, forms(), " · ".join(MODELS), tiles)
    history = [{"step": step, "loss": 40.0 / step, "lr": 0.1} for step in range(1, 50)]
    samples = [Sample(np.full((16, 16, 3), 20 * i, np.uint8), "") for i in range(5)]
    write_report(run, RunReport(LONG, {"identities": 2311, LONG: LONG}, history, samples=samples, phases=[20]))
    write_findings(findings)
    write_timeline(plan, planned(), LONG)
    return [results, other, run, findings, plan]


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))
