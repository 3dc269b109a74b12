"""What exporting costs in accuracy and gives in speed.

    python benchmarks/export.py                       # both cases, on runs/quickstart (make quickstart)
    python benchmarks/export.py --case int8 --run RUN

Cases: `onnx`, ONNX's embeddings beside PyTorch's; `int8`, static int8 ONNX beside float32 ONNX. The forms take turns in
one process, so the ratios hold on a busy machine too.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from line import print_line

from dist_train.errors import UserError, WorkError
from dist_train.export.forms import Figures
from dist_train.export.job import ExportJob, export_forms


def export(options: argparse.Namespace, **more: Any) -> tuple[dict[str, Figures], dict[str, Any]]:
    """Export the run to a scratch folder: the figures by form, and what was run."""
    with tempfile.TemporaryDirectory() as name:
        sets = (options.verification,)
        job = ExportJob(options.run, Path(name) / "model.onnx", sets=sets, check_images=options.images, **more)
        done = export_forms(job)
        about = json.loads(done.json_path.read_text(encoding="utf-8"))
    del about["forms"]
    return {row.name: row for row in done.figures}, about


def onnx(options: argparse.Namespace) -> dict[str, Any]:
    """Lowest cosine between ONNX's and PyTorch's embedding of a picture."""
    forms, about = export(options)
    ours, theirs = forms["onnx float32"], forms["pytorch float32"]
    return {
        "ours": ours.cosine_min,
        "baseline": 1.0,
        "unit": "lowest cosine to PyTorch",
        "accuracy": ours.accuracy,
        "accuracy_pytorch": theirs.accuracy,
        "images_per_s_over_pytorch": round(ours.images_per_s / theirs.images_per_s, 2),
        "run": about,
    }


def int8(options: argparse.Namespace) -> dict[str, Any]:
    """Speed and accuracy of static int8 beside float32 ONNX."""
    forms, about = export(options, int8=("static", "dynamic"), calibrate=options.calibrate)
    base = forms["onnx float32"]

    def beside(row: Figures) -> dict[str, Any]:
        return {
            "speed_ratio": round(row.images_per_s / base.images_per_s, 2),
            "accuracy_points": {k: round(100 * (v - base.accuracy[k]), 2) for k, v in row.accuracy.items()},
            "cosine_mean": row.cosine_mean,
            "cosine_min": row.cosine_min,
            "size_ratio": round(row.size_bytes / base.size_bytes, 3) if row.size_bytes and base.size_bytes else None,
        }

    static = forms["onnx int8 static"]
    return {
        "ours": round(static.images_per_s, 1),
        "baseline": round(base.images_per_s, 1),
        "ratio": round(static.images_per_s / base.images_per_s, 2),
        "unit": "images/s",
        "accuracy_float32": base.accuracy,
        "static": beside(static),
        "dynamic": beside(forms["onnx int8 dynamic"]),
        "run": about,
    }


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"onnx": onnx, "int8": int8}


def main() -> None:
    """Run one case or all."""
    data = Path("data/quickstart")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a trained run")
    parser.add_argument("--verification", type=Path, default=data / "heldout/verification.bin", help="set of pairs")
    parser.add_argument("--calibrate", type=Path, default=data / "train", help="shards to calibrate int8 with")
    parser.add_argument("--images", type=int, default=1024, help="pictures on which embeddings are compared")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    for name in [options.case] if options.case else CASES:
        try:
            line = CASES[name](options)
        except (UserError, WorkError) as error:
            sys.exit(f"{error}\nthe default run is made by `make quickstart`")
        print_line({"benchmark": "export", "case": name} | line)


if __name__ == "__main__":
    main()
