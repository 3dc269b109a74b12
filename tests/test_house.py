"""The house: which package and room may import which, no circles, no long files. Read from the sources by `ast`."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dist_train", "data_prep", "launch")
MOST_LINES = 400

# Rooms and single files of `dist_train`, each of which may import those before it.
ORDER = (
    "errors",
    "section",
    "run_files",
    "runtime",
    "recipe_tree",
    "sections",  # of recipes: see SECTIONS
    "phases",
    "config",
    "data",
    "backbones",
    "head",
    "replica",
    "contrast",
    "checkpoint",
    "weights",
    "start",
    "track",
    "evaluate",
    "export",
    "prune",
    "bench",
    "embed",
    "clean",
    "cluster",
    "objectives",  # teachers are what can be evaluated, or what was embedded
    "train",
)
# Modules that stand below their rooms: sections of recipes, whose base the recipe is, their registries, what a file
# states of itself, and the arithmetic of grey levels.
SECTIONS = {
    f"dist_train.{room}.config"
    for room in ("backbones", "contrast", "data", "evaluate", "export", "head", "objectives", "start")
}
SECTIONS |= {
    "dist_train.objectives.config",
    "dist_train.export.convention",
    "dist_train.backbones.registry",
    "dist_train.head.margins.table",
    "dist_train.data.levels",
    "dist_train.evaluate.calibration",
}
# Imports inside of functions that lead up, or in a circle: what is opened is known only by its name.
UPWARDS = {
    ("dist_train.evaluate.models", "dist_train.export.runtime"),
    ("dist_train.evaluate.fuse_cli", "dist_train.embed.embedded"),
}


# Imported name -> distribution, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "nvidia": "nvidia-dali-cuda130",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "aiohttp": "fsspec",  # its extra `http`
    "faiss": "faiss-cpu",
    "torch_pruning": "torch-pruning",
    "pydantic_core": "pydantic",
    "prometheus_client": "prometheus-client",
    "starlette": "fastapi",  # which is built on it
}
ELSEWHERE = {
    "data_prep.mtcnn.convert",  # was run once; its docstring says what it needs
    "dist_train.export.triton_decode",  # runs inside of Triton
}


class Import(NamedTuple):
    source: str
    target: str
    at_once: bool  # when the module is loaded; not in a function, and not for types alone


def read_modules() -> dict[str, ast.Module]:
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in files}
    return {".".join(parts[path]).removesuffix(".__init__"): ast.parse(path.read_bytes()) for path in files}


MODULES = read_modules()


def imports_of(source: str, node: ast.AST, at_once: bool = True) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(source, name.name, at_once) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{source}: imports are absolute"
            names = (f"{child.module}.{name.name}" for name in child.names)
            yield from (Import(source, name if name in MODULES else str(child.module), at_once) for name in names)
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        later |= isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from imports_of(source, child, at_once and not later)


EVERY = [each for source, tree in MODULES.items() for each in imports_of(source, tree)]
IMPORTS = [each for each in EVERY if each.target in MODULES]


def package_of(module: str) -> str:
    return module.partition(".")[0]


def floor_of(module: str) -> int:
    return ORDER.index("sections" if module in SECTIONS else module.split(".")[1])


def circles(arrows: set[tuple[str, str]]) -> set[str]:
    """Nodes from which the arrows lead back to themselves, or to such nodes."""
    while True:
        sources = {source for source, _ in arrows}
        inner = {(source, target) for source, target in arrows if target in sources}
        if inner == arrows:
            return sources
        arrows = inner


@pytest.mark.parametrize(
    ("arrows", "found"),
    [({("a", "b"), ("b", "c")}, set()), ({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}, {"a", "b", "c"})],
)
def test_circles_are_found(arrows, found):
    assert circles(arrows) == found


@pytest.mark.parametrize(
    ("upper", "lower"), [("launch", "data_prep"), ("launch", "dist_train"), ("data_prep", "dist_train")]
)
def test_no_lower_package_imports_an_upper_one(upper, lower):
    assert any(package_of(each.source) == upper and package_of(each.target) == lower for each in IMPORTS)
    wrong = [each for each in IMPORTS if package_of(each.source) == lower and package_of(each.target) == upper]
    assert wrong == []


def test_no_room_of_training_imports_one_above_it():
    inside = [each for each in IMPORTS if {package_of(each.source), package_of(each.target)} == {"dist_train"}]
    up = {(each.source, each.target) for each in inside if floor_of(each.source) < floor_of(each.target)}
    assert up == UPWARDS


def test_modules_import_one_another_in_no_circle():
    assert circles({(each.source, each.target) for each in IMPORTS if each.at_once}) == set()
    every = {(each.source, each.target) for each in IMPORTS}
    assert circles(every - UPWARDS) == set(), "with imports in functions, and for types"


def test_progress_bars_are_those_that_outlive_whoever_reads_them():
    uses = {each.source for each in EVERY if package_of(each.target) == "tqdm" and each.at_once}
    drawn = re.compile(r"(?<![.\w])tqdm\(")
    files = {name: (ROOT / name.replace(".", "/")).with_suffix(".py") for name in uses}
    assert {name for name, path in files.items() if drawn.search(path.read_text())} == {"dist_train.runtime.progress"}


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks"])
def test_no_file_has_more_than_400_lines(folder):
    lines = {path: path.read_bytes().count(b"\n") for path in (ROOT / folder).rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_every_module_says_what_it_is():
    assert [name for name, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def test_every_library_that_is_imported_is_a_dependency_or_of_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines)
    declared = {re.split(r"[^\w-]", line)[0] for line in [*project["dependencies"], *extras]}
    names = {package_of(each.target) for each in EVERY if each.source not in ELSEWHERE} - sys.stdlib_module_names
    assert {DISTRIBUTIONS.get(name, name).lower() for name in names - set(PACKAGES)} - declared == set()
