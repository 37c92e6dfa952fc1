"""timm's optimiser, schedule and moving average for a learner, and their states as plain tensors whatever accelerate has wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import PruneError
from ..load.checkpoint import one_line
from .learner import Learner
from .settings import TrainSettings


def make_optimiser(learner: Learner, settings: TrainSettings) -> Any:
    """Weight decay and learning rate by layer, as timm groups the model's parameters; those of a learned method in groups of their own."""
    from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay

    model, learned = learner.model, learner.learned
    model.requires_grad_(not settings.frozen)
    free: Any = getattr(model, "no_weight_decay", set)()
    if settings.layer_decay:
        groups = param_groups_layer_decay(model, settings.weight_decay, no_weight_decay_list=free, layer_decay=settings.layer_decay)
    else:
        groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=free)
    groups += [{**group, "lr_scale": settings.learned_lr} for group in param_groups_weight_decay(learned, settings.weight_decay)]
    if not any(group["params"] for group in groups):
        raise PruneError("frozen=true trains the weights of a learned method only, and this one has none; leave it out")
    try:
        return create_optimizer_v2(groups, opt=settings.optimizer, lr=settings.rate, betas=settings.betas, eps=settings.eps)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise PruneError(
            f"optimizer={settings.optimizer!r} cannot be made ({one_line(error)}); timm.optim.list_optimizers() has them"
        ) from None


def make_schedule(optimiser: Any, settings: TrainSettings, steps: int) -> Any:
    """timm's schedule, which depends on the step or epoch alone."""
    from timm.scheduler import create_scheduler_v2

    made, _ = create_scheduler_v2(
        optimiser,
        sched=settings.schedule,
        num_epochs=settings.epochs,
        min_lr=settings.min_lr,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=settings.warmup_lr,
        step_on_epochs=settings.schedule_by == "epoch",
        updates_per_epoch=steps,
    )
    return made


def make_average(learner: Learner, settings: TrainSettings, accelerator: Any) -> Any:
    """timm's moving average of all weights; None without."""
    if not settings.ema:
        return None
    if is_sharded(accelerator):
        raise PruneError("a moving average needs whole weights, which FSDP shards; give ema=0, or train without FSDP")
    from timm.utils import ModelEmaV3

    return ModelEmaV3(learner, decay=settings.ema)


def is_sharded(accelerator: Any) -> bool:
    """Whether FSDP shards the weights."""
    return str(accelerator.distributed_type).endswith("FSDP")


def weights_of(wrapped: nn.Module) -> dict[str, Tensor]:
    """The learner's weights by its own names, whole and on the CPU; all processes have to ask."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return dict[str, Any](get_model_state_dict(wrapped, options=whole()))


def load_weights(wrapped: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """The inverse of `weights_of`."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(wrapped, dict(weights), options=whole(cpu=False))


def optimiser_state(wrapped: nn.Module, optimiser: Any) -> Any:
    """The optimiser's state by the names of the weights, whole and on the CPU; all processes have to ask."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(wrapped, plain(optimiser), options=whole())


def load_optimiser(wrapped: nn.Module, optimiser: Any, state: Any) -> None:
    """The inverse of `optimiser_state`. Weights that never had a gradient have no state."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    set_optimizer_state_dict(wrapped, plain(optimiser), state, options=whole(cpu=False, strict=False))


def whole(cpu: bool = True, strict: bool = True) -> Any:
    """Whole tensors, not shards."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=cpu, strict=strict)


def plain(optimiser: Any) -> Any:
    """The optimiser inside accelerate's."""
    return getattr(optimiser, "optimizer", optimiser)
