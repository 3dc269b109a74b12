"""Pages with everything that a page may hold, made of invented results; `python -m tests.browser.example DIRECTORY`."""

import sys
from pathlib import Path

import cv2
import numpy as np

from dist_train.evaluate.heat_table import heat_table
from dist_train.evaluate.plots import Line, plot_lines
from dist_train.evaluate.report import RunReport, Sample, write_page, write_report
from dist_train.evaluate.sections import Section
from dist_train.evaluate.shown_pictures import PictureRow, shown
from dist_train.evaluate.tables import Cell, Table

LONG = "a-run-of-a-very-long-name/with-many-settings/lr-0.1-margin-0.5-seed-17/checkpoint-000120000"
MODELS = ("r50", "vit_b", LONG)
FMRS = np.logspace(-1, -6, 6)
GROUPS = ("Bhutan", "Canada", "Zimbabwe", "Republic of a group with a long name", "Peru", "Oman", "Togo")


def picture(number: int, side: int = 48) -> bytes:
    """A PNG of one colour with a figure, another for each number."""
    pixels = np.full((side, side, 3), [(number * 53) % 256, (number * 97) % 256, 140], np.uint8)
    cv2.putText(pixels, str(number), (6, side // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
    return cv2.imencode(".png", pixels)[1].tobytes()


def sections() -> list[Section]:
    """A section of each form."""
    rng = np.random.default_rng(0)
    errors = {name: np.clip(0.004 * (i + 1) * FMRS**-0.35, 0, 1) for i, name in enumerate(MODELS)}
    points = Table(
        "Operating points",
        ["set", "FMR", "threshold", "measured FMR", "FNMR %", "95 % interval", "pairs"],
        [
            [
                Cell(f"own pictures · {name}"), Cell(f"{fmr:.0e}"), Cell(f"{0.2 + 0.05 * i:.3f}"), Cell(f"{fmr:.2e}"),
                Cell(f"{100 * error:.2f}", best=name == MODELS[0]),
                Cell(f"{95 * error:.2f} - {106 * error:.2f}"), Cell("1,250,000,000"),
            ]
            for name in MODELS
            for i, (fmr, error) in enumerate(zip(FMRS, errors[name], strict=True))
        ],
        ["* Fewer than 3 / FMR impostor pairs: the rule of three does not carry this rate."],
    )  # fmt: skip
    curves = [Line(name, FMRS, e, 0.8 * e, 1.25 * e) for name, e in errors.items()]
    shares = np.linspace(0, 0.9, 1000)
    kept = [Line("norm", shares, 0.03 * (1 - shares) ** 2), Line("sharpness", shares, 0.03 * (1 - 0.3 * shares))]
    random = Line("at random", [0, 0.9], [0.03, 0.03], reference=True)
    matrix = [[10 ** rng.uniform(-5, -2) for _ in GROUPS] for _ in GROUPS]
    matrix[2][3], matrix[3][2] = 0.0, float("nan")
    return [
        Section("Operating points", "FNMR at the threshold of each false match rate.", [points], [[
            plot_lines("FNMR at FMR: own pictures", "FMR", "FNMR", curves, log_x=True, log_y=True, points=True),
        ]]),
        Section("Quality", "Error against the share of pictures that are discarded.", plots=[[
            plot_lines("FNMR at FMR 1e-3", "discarded share", "FNMR", [*kept, random]),
            plot_lines("Without any error", "discarded share", "FNMR", [Line("norm", [0, 1], [0, 0])], log_y=True),
            plot_lines("Six models", "x", "y", [Line(f"model {i}", [0, 1], [i, i + 1]) for i in range(6)]),
        ]], pictures=[shown(picture(i), f"0.{i} of a person with a long name", None) for i in range(9)]),
        Section("Groups", "False match rate of each pair of groups at one threshold.", [
            heat_table("False match rate", "group", GROUPS, GROUPS, matrix, "{:.1e}".format, log=True),
            heat_table("False non-match rate", "group", GROUPS, ["FNMR %"], [[i] for i in range(7)], "{:.2f}".format),
        ]),
        Section(f"Retrieval: products · {LONG}", "Searches that went wrong first.", rows=[
            PictureRow(
                shown(picture(i), f"query {i}"),
                [shown(picture(10 * i + j, 48 if j else 700), f"0.{90 - j} {j}", (i + j) % 3 > 0) for j in range(10)],
                f"query {i}: average precision 0.31",
            )
            for i in range(3)
        ]),
        Section("Cannot be read", rows=[PictureRow(shown(b"no picture", "gone"), [])]),
    ]  # fmt: skip


def write_examples(directory: Path) -> list[Path]:
    """Write a page of results of several models, and the report of a run."""
    results, run = directory / "results.html", directory / "run.html"
    tiles = [("98.31 %", f"verification accuracy ± 0.41, {LONG}"), ("3.338e-06", "largest ONNX difference")]
    write_page(results, f"Evaluation of {LONG}", sections(), " · ".join(MODELS), tiles)
    history = [{"step": step, "loss": 40.0 / step, "lr": 0.1, "images_per_s": 300.0} for step in range(1, 50)]
    samples = [Sample(np.full((16, 16, 3), 20 * i, np.uint8), "") for i in range(5)]
    write_report(run, RunReport(LONG, {"identities": 2311, LONG: LONG}, history, samples=samples, phases=[20]))
    return [results, run]


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))
