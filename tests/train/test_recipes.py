"""`headcount train CONFIG --check`, and the recipes of configs/ by it."""

import sys

import pytest
import torch

import launch.cli
from dist_train.config import load_config
from dist_train.errors import WorkError
from dist_train.train.dry_step import dry_step
from tests.docs.pages import ROOT
from tests.sets import write_set

# Those of `headcount train`; a detector's are another command's.
RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith("detector_"))
# Of arcface_torch and the ArcFace paper: steps or epochs, batch, learning rate, decay, (margin, m2, m3), sample rate.
PUBLISHED = {
    "casia_r50": (32000, 512, 0.1, 5e-4, ("arcface", 0.5, None), 1.0),
    "ms1mv3_r50": (20, 1024, 0.1, 5e-4, ("arcface", 0.5, None), 1.0),
    "glint360k_r100": (20, 1024, 0.1, 1e-4, ("cosface", None, 0.4), 1.0),
    "webface42m_r100_pfc02": (20, 1024, 0.1, 5e-4, ("cosface", None, 0.4), 0.2),
    "webface42m_vit_b": (40, 24576, 1e-3, 0.1, ("cosface", None, 0.4), 0.3),
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def headcount(tmp_path, monkeypatch, capsys):
    """The command line in an empty folder: its status and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["headcount", *map(str, arguments)])
        status = launch.cli.run()
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes_the_check_without_its_set_and_leaves_nothing_behind(recipe, headcount, tmp_path):
    status, said = headcount("train", recipe, "--check")
    assert status == 0, said
    assert "no such directory; the rest is checked without it" in said
    if load_config(recipe).program == "recognition":
        assert "h100, 80 GiB: room for" in said
    assert "check passed with" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_published_sets_have_the_published_settings(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    head, train = config.head, config.train
    found = (
        train.steps or train.epochs,
        train.global_batch_size,
        config.optimizer.lr,
        config.optimizer.weight_decay,
        (head.margin, head.m2, head.m3),
        head.sample_rate,
    )
    assert found == PUBLISHED[name]
    assert (head.scale, head.weight_decay, train.precision) == (64.0, config.optimizer.weight_decay, "float16")
    assert "NOT RUN HERE" in (ROOT / "configs" / f"{name}.yaml").read_text()


def test_a_set_that_is_there_is_counted_and_its_batches_too(headcount, tmp_path):
    write_set(tmp_path / "set")
    arguments = ["train", ROOT / "configs" / "quickstart.yaml", "--check", f"data.path={tmp_path / 'set'}"]
    status, said = headcount(*arguments, "train.global_batch_size=16", "evaluate=null")
    assert status == 2, said
    assert "evaluate" in said
    checked = [*arguments, "evaluate.verification=[]", "evaluate.identification=[]"]
    status, said = headcount(*checked, "train.global_batch_size=16")
    assert status == 0, said
    assert "data: 10 identities, 80 pictures of 32 px; 5 steps an epoch, 18 in all, of them 50 of warm-up" in said
    assert "warning: optimizer.warmup_steps 50 of 18 steps: the peak is never reached" in said
    assert "needs" in said
    assert "check passed with 1 warning\n" in said
    status, said = headcount(*checked, "data.images_per_class=2", "optimizer.warmup_steps=0")
    assert status == 0, said
    assert "\ncheck passed\n" in said
    status, said = headcount(*checked)
    assert status == 2
    assert "the set has 80 samples, fewer than one global batch of 256" in said
    (tmp_path / "set" / "manifest.json").write_text("{")
    status, said = headcount(*checked)
    assert status == 2
    assert "manifest.json: not JSON" in said


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["head.margin=arkface"], 2, "head.margin"),
        (["head.m3=0.4"], 2, "margin 'arcface' does not read ['m3']"),
        (["data.image_size=16"], 2, "image_size 16 px is too small for backbone.name=tiny; use >= 32"),
        (["train.micro_batch_size=48"], 2, "is not a multiple of"),
        (["--resume"], 2, "--check starts no run"),
        (["optimizer.lr=.inf"], 2, "optimizer.lr: input should be a finite number; found inf"),
        (["train.strategy=zero2"], 0, "works on several ranks only"),
        (["train.strategy=zero2", "train.precision=float16"], 2, "float16 goes with train.strategy=ddp only"),
        (["train.device=cuda"], 0, "no GPU on this machine"),
        (["data.path=http://127.0.0.1:9/set", "data.retries=0"], 0, "no success in 1 tries"),
        (["data.mix=[{path: b, weight: 1}]"], 0, "data.mix, set 1: b: no such directory"),
    ],
)
def test_the_check_says_what_a_run_would_refuse(overrides, status, message, headcount):
    found, said = headcount("train", ROOT / "configs" / "quickstart.yaml", "--check", *overrides)
    assert found == status, said
    assert message in said
    assert "Traceback" not in said


def test_a_recipe_for_the_cpu_gets_no_plan_of_gpus(headcount):
    status, said = headcount("train", ROOT / "configs" / "quickstart.yaml", "--check", "train.device=cpu")
    assert status == 0
    assert "plan for" not in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.images_per_class=2"],
        ["head.storage=mmap", "head.storage_dir=rows"],
        ["head.storage=host", "head.dtype=bfloat16", "head.optimizer=rowwise_adagrad", "train.ema_decay=0.9"],
        ["optimizer.name=adamw", "head.optimizer=adamw", "optimizer.clip_norm=1"],
        ["head.margin=softmax", "head.m2=null", "head.scale=null"],
        ["head.margin=adaptive", "head.m2=null"],
        ["data.mix=[{path: b, weight: 2}]"],
    ],
)
def test_a_dry_step_takes_every_kind_of_recipe(overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = dry_step(load_config(ROOT / "configs" / "quickstart.yaml", overrides), 32)
    assert step.loss > 0
    assert step.gradient_norm > 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_step_without_a_finite_loss_fails(monkeypatch):
    monkeypatch.setattr(
        "dist_train.train.replicas.build_backbone", lambda *_: torch.nn.Sequential(torch.nn.Flatten(), Broken())
    )
    with pytest.raises(WorkError, match="dry step: loss nan"):
        dry_step(load_config(ROOT / "configs" / "quickstart.yaml"), 32)


class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3 * 32 * 32, 128), float("nan")))

    def forward(self, flat):
        return flat @ self.weight
