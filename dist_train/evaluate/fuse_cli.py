"""What `headcount eval --fuse` does: files of embeddings judged alone and fused, as if they were models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dist_train.evaluate.all_pairs import judge_all
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.figures_file import figures_of, write_figures
from dist_train.evaluate.fusion import FusionResult, evaluate_fusion
from dist_train.evaluate.fusion_file import PARTS_KEY, FusedModel, described, fused_digest
from dist_train.evaluate.kinds import result_tables
from dist_train.evaluate.report import write_comparison
from dist_train.evaluate.tables import Cell, ModelScores, Table, rate
from dist_train.runtime.ranks import join_ranks, leave_ranks
from dist_train.runtime.terminal import echo

_SET = "held-out identities"


def evaluate_files(files: Sequence[Path], fmr: float, json_path: Path | None, report: Path | None) -> None:
    """Judge files of embeddings alone and fused, and print, or write, what was found.

    Raises:
        UserError: files that cannot be read or joined, or too few identities in a half.
        WorkError: damaged files, or figures that cannot be written.
    """
    from dist_train.embed.embedded import read_description, read_embedded

    ranks = join_ranks("cpu", None)
    try:
        with ranks.first_speaks():
            opened = ranks.agree(lambda: _named([read_embedded(path) for path in files]))
            found, judged = evaluate_fusion(opened, fmr, ranks)
            scores = [ModelScores(each.name, all_pairs=[judge_all(each, _SET, ranks)]) for each in judged]
        if ranks.rank != 0:
            return
        echo("\n\n".join(map(str, [*result_tables(scores), fusion_table(found)])))
        if json_path:
            bodies = [{"model": each.name, **figures_of(each)} for each in scores]
            weights = [each.weight for each in found.alone]
            parts = [FusedModel.of(read_description(path), w) for path, w in zip(files, weights, strict=True)]
            bodies[-1] |= {"model_sha256": fused_digest(parts)}
            bodies[-1]["fusion"] = found.summary() | {PARTS_KEY: described(parts)}
            write_figures(json_path, bodies)
        if report:
            write_comparison(report, "Fusion", scores, [fusion_table(found)])
    finally:
        leave_ranks(ranks)


def _named(files: list[EmbeddedSet]) -> list[EmbeddedSet]:
    """Files whose names are told apart."""
    names = [each.name for each in files]
    return [replace(each, name=str(each.path)) if names.count(each.name) > 1 else each for each in files]


def fusion_table(found: FusionResult) -> Table:
    """Weights, and each file alone beside the fusion."""
    rows = [
        [
            each.name,
            f"{each.weight:.3f}",
            f"{100 * each.fnmr:.2f}",
            f"{100 * each.gain:+.2f} [{100 * each.gain_95[0]:+.2f}, {100 * each.gain_95[1]:+.2f}]",
        ]
        for each in found.alone
    ]
    rows.append(["fused", "", f"{100 * found.fnmr:.2f}", ""])
    learned = (
        f"weights from {found.calibration_identities:,} identities, figures from the other {found.identities:,}, "
        f"{found.pictures:,} pictures"
    )
    heads = ["file", "weight", f"FNMR % at FMR {rate(found.fmr)}", "less by fusion [95 %]"]
    return Table("Fusion", heads, [[Cell(text) for text in row] for row in rows], [learned, *found.notes])
