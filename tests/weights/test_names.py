"""Weights under arcface_torch's names give in our networks the embeddings that they give there."""

import pytest
import torch

from dist_train.backbones import build_backbone
from dist_train.backbones.config import backbone_section
from dist_train.backbones.registry import BACKBONES
from dist_train.backbones.widths import layer_widths
from dist_train.errors import UserError
from dist_train.weights.fit import fit_weights
from dist_train.weights.names import TABLES
from tests.weights.arcface import BLOCKS, SCALES, Formula


def section(name, **keys):
    return backbone_section({"name": name, **({"embedding_norm": "bias"} if "iresnet" in name else {}), **keys})


SLOW = ("iresnet50", "iresnet100")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.job) if name in SLOW else name for name in (*BLOCKS, *SCALES)]
)
def test_arcface_torchs_weights_embed_as_there(name):
    images = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1
    formula = Formula()
    expected = formula(name, images)
    network = build_backbone(section(name), 112).eval()
    fit = fit_weights(formula.state, network.state_dict(), section(name))
    assert (fit.source, fit.misfits()) == ("arcface_torch", "")
    network.load_state_dict(fit.tensors)  # strictly: all of them are there
    with torch.no_grad():
        cosine = torch.cosine_similarity(network(images).double(), expected.double())
    assert float(cosine) >= 1 - 1e-6


@pytest.mark.parametrize("name", BACKBONES)
def test_a_table_has_one_name_for_every_tensor(name):
    with torch.device("meta"):
        tensors = sorted(build_backbone(section(name), max(64, BACKBONES[name].min_image_size)).state_dict())
    for source, table in TABLES.items():
        ours_alone = name in ("tiny", "nano") or name.startswith("vit_")
        if source == "timm" or (source == "arcface_torch" and ours_alone):
            first = "timm/NAME" if source == "timm" else "iresnet18"
            with pytest.raises(UserError, match=f"no network like backbone.name={name}; it has {first}"):
                table.own_names(section(name))
        else:
            assert sorted(table.own_names(section(name)).values()) == tensors


def test_a_pruned_network_has_its_names_whatever_the_size_of_its_pictures():
    section = backbone_section({"name": "tiny", "embedding_dim": 8})
    whole = layer_widths(build_backbone(section, 64))
    last = {"stages.3.residual.4": (256, 192), "stages.3.residual.5": (192, 192), "stages.3.shortcut.0": (128, 192)}
    last |= {"stages.3.shortcut.1": (192, 192), "embed.0": (192, 192), "embed.3": (4 * 192, 8)}
    assert last.keys() <= whole.keys()
    pruned = section.model_copy(update={"channels": last})
    network = build_backbone(pruned, 64).state_dict()
    fit = fit_weights(network, network, pruned)
    assert (fit.source, fit.misfits(), len(fit.tensors)) == ("headcount", "", len(network))
