"""The backbone's optimizer: its parameter groups, each with its decay and its share of the learning rate."""

from collections.abc import Set as AbstractSet

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from dist_train.backbones import undecayed
from dist_train.backbones.conventions import lies_in, part_places
from dist_train.config import OptimizerConfig
from dist_train.errors import UserError


def rate_shares(config: OptimizerConfig, backbone: nn.Module) -> dict[str, float]:
    """By parameter name, what the learning rate of the schedule is multiplied by.

    `backbone_lr_scale`, times `layer_decay` for each part between a parameter's and the embedding (Clark et al.,
    "ELECTRA" (ICLR 2020), appendix A).

    Raises:
        UserError: a decay by parts of a network that names none.
    """
    parts = part_places(backbone)
    if config.layer_decay != 1.0 and not parts:
        raise UserError(
            f"optimizer.layer_decay {config.layer_decay:g}: {type(backbone).__name__} names no parts by which it could "
            "decay; set it to 1, or use a network that does"
        )
    places = list(reversed(parts.values()))  # from the embedding on
    distances = {
        name: next((distance for distance, part in enumerate(places) if lies_in(name, part)), 0)
        for name, _ in backbone.named_parameters()
    }
    return {name: config.backbone_lr_scale * config.layer_decay**distance for name, distance in distances.items()}


def build_backbone_optimizer(
    config: OptimizerConfig, backbone: nn.Module, late: AbstractSet[str] = frozenset(), *, fused: bool = False
) -> Optimizer:
    """The backbone's optimizer, of the parameters that are trained.

    Norms and biases, which have one dimension, are a group of their own, without decay if so configured. Parameters
    that the network never wants decayed (`undecayed`) are a third one, where there are any. Each is divided further
    where its learning rates differ, and by what begins to train later than the rest.

    Args:
        config: the recipe's section `optimizer`.
        backbone: a parameter that stands still requires no gradient.
        late: names of parameters whose steps are counted apart.
        fused: one kernel that reads on the device whether it is to do anything (torch's `found_inf`).

    Returns:
        Groups have `lr_share`, which `set_rates` reads, and `late`.

    Raises:
        UserError: see `rate_shares`.
    """
    never, shares = undecayed(backbone), rate_shares(config, backbone)
    decays = {"weights": config.weight_decay, "vectors": config.weight_decay if config.decay_norms else 0.0, "never": 0}
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            kind = "never" if name in never else "weights" if parameter.ndim > 1 else "vectors"
            groups.setdefault((kind, shares[name], name in late), []).append(parameter)
    settings = [
        {"params": groups[kind, share, is_late], "weight_decay": decays[kind], "lr_share": share, "late": is_late}
        for kind, share, is_late in sorted(groups, key=lambda group: (list(decays).index(group[0]), *group[1:]))
    ]
    if config.name == "adamw":
        return AdamW(settings, lr=config.lr, fused=fused or None)
    return SGD(settings, lr=config.lr, momentum=config.momentum, fused=fused or None)


def set_rates(optimizer: Optimizer, lr: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]
