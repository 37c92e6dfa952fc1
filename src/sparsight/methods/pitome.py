"""PiToMe: at every block merge the tokens of large groups of similar ones, and protect those that stand alone. Tran et al., NeurIPS 2024, arXiv:2405.16148.

Written from the published formulas. A token's energy is the mean over all tokens of f(cosine of their keys - m), with f(u) = u above 0 and
exp(u) - 1 below, keys averaged over heads, and the margin m = margin * (1 - depth) falling over the blocks. Of n tokens r = n - ceil(keep * n)
are merged: the 2r of highest energy are dealt alternately to two sets, and each of the first joins the most similar of the second. At most
half of the tokens can go. `spread` is the share of the blocks, from the first, where all tokens are dealt and the r most similar pairs are
merged instead: 0.5 in the authors' code for DeiT. Tokens become means weighted by size; `proportional` adds log(size) to later attention
(false: their code has the option, but its blocks never get the sizes).
Deviations: slots are in spatial order (theirs: by energy); ties go to the lower index.
"""

from torch import Tensor
from torch.nn.functional import elu

from ..errors import PruneError
from ..ops import reduce, schedule, select
from ..ops.portable import stable_order
from ..ops.schedule import Layers
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method


def energy(likeness: Tensor, margin: float) -> Tensor:
    """How large the group of similar tokens around each one is: likeness [B, N, N] -> [B, N]."""
    return elu(likeness - margin).mean(dim=-1)


def by_energy(k: Tensor, prefix: int, depth: float, count: int, margin: float, spread: float) -> Plan:
    """Merge tokens of high energy by keys k [B, H, P+N, D]."""
    metric = select.directions(k, prefix)
    n = metric.shape[1]
    removed = min(n - count, n // 2)
    if removed <= 0:
        return select.everything(metric)
    likeness = metric @ metric.transpose(-2, -1)
    order = stable_order(energy(likeness, margin * (1 - depth)), descending=True)
    dealt = order if depth < spread else order[:, : 2 * removed]
    source, target = dealt[:, ::2], dealt[:, 1::2]
    value, partner = select.rows(likeness, source).gather(2, target.unsqueeze(1).expand(-1, source.shape[1], -1)).max(dim=-1)
    if depth < spread:
        going = stable_order(value, descending=True)[:, :removed]
        source, partner = source.gather(1, going), partner.gather(1, going)
    keep = select.others(source, n)
    slot = select.slots(keep, n)
    return Plan(keep, n, slot.scatter(1, source, slot.gather(1, target.gather(1, partner))))


@method
def pitome(
    keep: float = 0.9, layers: Layers = "all", margin: float = 0.75, spread: float = 0.0, proportional: bool = False
) -> Recipe:
    if not -1 <= margin <= 1:
        raise PruneError(f"margin={margin:g} is outside [-1, 1]: it is a cosine")
    choose = Step(by_energy, margin=margin, spread=schedule.check_share("spread", spread))
    return Recipe(None, choose, reduce.merge_sized, schedule.staged(keep, layers), proportional=proportional)
