"""What one rank finds wrong, all ranks know before any of them writes."""

from typing import NamedTuple

import torch
from torch import Tensor

from negdiag_param._maths.feasible import Verdict
from negdiag_param._ranks.dtensor import is_sharded


class Finding(NamedTuple):
    """The verdict on a diagonal, and the first rank that cannot go on, if any."""

    verdict: Verdict
    failed: int | None


def agreed(verdict: Verdict, fails: bool, weight: Tensor) -> Finding:
    """What all ranks that share ``weight`` found together; what this one found, if it is plain.

    One small collective for each dimension of the mesh, so every rank has to come here.
    """
    if not is_sharded(weight) or weight.device_mesh.get_coordinate() is None:
        return Finding(verdict, 0 if fails else None)
    import torch.distributed as dist

    mesh = weight.device_mesh
    rank = float(dist.get_rank()) if fails else torch.inf
    counts = [verdict.entries, verdict.not_finite, verdict.infeasible]
    device = weight.to_local().device
    row = torch.tensor([*counts, verdict.largest, -rank], dtype=torch.float64, device=device)
    for dim, placement in enumerate(weight.placements):
        rows = [torch.empty_like(row) for _ in range(mesh.size(dim))]
        dist.all_gather(rows, row, group=mesh.get_group(dim))
        table = torch.stack(rows)
        row = table.amax(0)
        if not placement.is_replicate():
            row[:3] = table[:, :3].sum(0)
    entries, not_finite, infeasible, largest, failed = row.tolist()
    together = Verdict(int(entries), int(not_finite), int(infeasible), largest)
    return Finding(together, None if failed == -torch.inf else int(-failed))
