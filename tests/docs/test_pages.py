"""Every command of the documentation, checked or run; tests/docs/README.md tells the convention."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
import yaml

import launch.cli
from tests.docs import keys
from tests.docs.commands import (
    WrongPageError,
    check_headcount,
    check_recipe_part,
    check_shell,
    check_syntax,
    recipes_made,
)
from tests.docs.pages import PAGES, ROOT, blocks, groups

FONTS = ("STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")
# Whole jobs for one's own machine; and what starts processes of its own, which should not be children of the tests.
NEVER_RUN, OWN_PROCESS = ("make",), ("headcount launch local", "headcount launch torchrun", "headcount launch slurm")
PROGRAMS = Path(sys.executable).absolute().parent  # a relative one, found by PATH, leads nowhere from another folder
OUTSIDE_PROCESS = re.compile(r"[|&;<>$`*?(){}~]")  # bash must see these


def _name(page):
    return str(page.relative_to(ROOT).with_suffix(""))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with a tiny set, recipes and a finished run, made by the commands that users give."""
    folder = tmp_path_factory.mktemp("docs")
    fonts = folder / "fonts"
    fonts.mkdir()
    for name in FONTS:
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, fonts)
    shutil.copytree(ROOT / "configs", folder / "configs")
    recipe = folder / "configs" / "quickstart.yaml"
    tree = yaml.safe_load(recipe.read_text())
    del tree["train"]["epochs"]
    tree["train"] |= {"steps": 4, "global_batch_size": 16, "log_every": 1, "device": "cpu", "threads": 1}
    tree["optimizer"]["warmup_steps"] = 1
    tree["track"] = {"wandb": "disabled"}
    recipe.write_text(yaml.safe_dump(tree))
    run_group(
        "headcount prep glyphs data/quickstart --image-size 32 --identities 40 --heldout-identities 12 --views 6 "
        "--pairs 40 --min-fonts 2 --workers 1 --fonts fonts",
        folder,
    )
    run_group("headcount train configs/quickstart.yaml", folder)
    return folder


def run_group(group, folder):
    """Run a part of a block in `folder`; it must end with status 0."""
    if group.startswith(NEVER_RUN):
        return
    if group.startswith("headcount") and not group.startswith(OWN_PROCESS) and not OUTSIDE_PROCESS.search(group):
        status = headcount(shlex.split(group, comments=True)[1:], folder)
        assert status == 0, f"status {status}: {group}"
        return
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", group],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {group}\n{done.stdout}\n{done.stderr}"


def headcount(arguments, folder):
    """The command line inside this process; its exit status."""
    threads = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
            patch.setattr(sys, "argv", ["headcount", *arguments])
            return launch.cli.run()
    finally:
        torch.set_num_threads(threads)  # a run sets its own, and other tests follow


def check_serve_config(text):
    """Raise where a Serve config file names no application of ours, or an argument that it does not have."""
    options = pytest.importorskip("launch.serve.ray", reason="Ray Serve is not installed").Options
    for each in yaml.safe_load(text)["applications"]:
        if each["import_path"] != "launch.serve.ray:application":
            raise WrongPageError(f"import_path {each['import_path']}: no application")
        try:
            options.model_validate(each["args"])
        except ValueError as error:
            raise WrongPageError(str(error)) from error


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_pages_commands_and_keys_exist(page):
    made = set()
    for block in blocks(page):
        try:
            if block.info in ("sh", "sh no-run"):
                check_syntax(block.text)
            if block.info in ("sh", "sh no-run", ""):
                check_shell(block.text, made)
            if block.info == "yaml":
                check_recipe_part(block.text)
            if block.info == "yaml serve":
                check_serve_config(block.text)
        except WrongPageError as error:
            pytest.fail(f"{block.where}: {error}")
        if block.runs:
            made |= recipes_made(block.text)


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.runs for b in blocks(page))], ids=_name)
def test_a_pages_commands_run(page, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "scratch")
    for block in blocks(page):
        for group in groups(block.text) if block.runs else ():
            try:
                run_group(group, folder)
            except AssertionError as error:
                pytest.fail(f"{block.where}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_pages_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:|mailto:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in index]
    assert missing == ["README.md"], "add a line to docs/README.md"


def test_the_page_of_keys_is_as_the_sections_describe_them():
    assert keys.PAGE.read_text(encoding="utf-8") == keys.page(), "run `python -m tests.docs.keys`"


def test_every_key_of_a_recipe_is_described():
    rows = [line for line in keys.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if len(row.split(" | ")[-1]) < 20] == []


def test_the_architecture_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = [
        path.parent for name in ("dist_train", "data_prep", "launch") for path in (ROOT / name).rglob("__init__.py")
    ]
    rooms = [f"`{room.relative_to(ROOT)}/`" for room in packages if room.parent != ROOT and "margins" not in room.name]
    assert rooms
    assert [room for room in rooms if room not in text] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("headcount trian configs/quickstart.yaml", "no command 'trian'"),
        ("headcount launch locale configs/quickstart.yaml", "no command 'locale'"),
        ("headcount train", "Missing argument"),
        ("headcount train configs/quickstart.yaml --resum", "No such option"),
        ("headcount train configs/nowhere.yaml", "no recipe configs/nowhere.yaml"),
        ("headcount train configs/quickstart.yaml head.sample_rat=0.1", "did you mean head.sample_rate"),
        ("headcount train configs/quickstart.yaml head.sample_rate=2", "less than or equal to 1"),
        ("headcount train mine.yaml head.sample_rat=0.1", "did you mean head.sample_rate"),
        ("headcount data bench x --workers many", "valid integer"),
        ("srun --nodes 2 headcount train", "Missing argument"),
        ("A=1 headcount eval runs/a | tee log && headcount evul", "no command 'evul'"),
        ("for x in 1 2; do headcount trian; done", "no command 'trian'"),
        ("torchrun --nproc-per-node 8 -m launch trian configs/quickstart.yaml", "no command 'trian'"),
        ("make quickstrat", "no target quickstrat"),
    ],
)
def test_a_wrong_line_is_found(line, message):
    with pytest.raises(WrongPageError, match=re.escape(message)):
        check_shell(f"echo before\n{line}  # remark\n")


def test_right_lines_pass():
    check_shell(
        "make lint PYTHON=python3\n"
        "headcount launch local configs/quickstart.yaml --ranks 3 \\\n"
        "  optimizer.lr=0.05 'data.mix=[{path: b, weight: 2}]'\n"
        "sudo apt-get install headcount-unknown  # headcount nonsense\n"
        "headcount train mine.yaml\n"
        "headcount prep detect photos/anna/1.jpg photos/bob/*.jpg --out seen\n",
        made={"mine.yaml"},
    )
    check_headcount(["train", "--help"])


def test_a_part_of_a_recipe_with_an_unknown_key_is_found():
    check_recipe_part("head: {margin: cosface, m3: 0.4}\n")
    with pytest.raises(WrongPageError, match="m4"):
        check_recipe_part("head: {margin: cosface, m4: 0.4}\n")


def test_a_command_that_fails_is_found(tmp_path):
    with pytest.raises(AssertionError, match="status 2"):
        run_group("headcount data inspect nowhere", tmp_path)
    with pytest.raises(AssertionError, match="status 3"):
        run_group("true\nexit 3", tmp_path)
