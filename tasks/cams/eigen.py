"""The leading direction of features over cells, for Eigen-CAM and Eigen-Grad-CAM."""

import torch
from torch import Tensor


def leading_direction(features: Tensor) -> Tensor:
    """First principal direction v [..., F] of features [..., F, n] over their n cells, of unit length.

    It is the first right singular vector of the [n, F] matrix after each feature's mean over cells is taken off. The
    sign is such that the projection of the features as they are, not centred, sums to 0 or more. Where nothing
    varies v is 0; where something is not finite it is NaN.
    """
    centred = (features - features.mean(-1, keepdim=True)).double()
    few_cells = features.shape[-1] <= features.shape[-2]
    # The smaller of the two Gram matrices has the same leading eigenvector, up to one multiplication.
    gram = centred.mT @ centred if few_cells else centred @ centred.mT
    finite = gram.isfinite().all(-1).all(-1)  # the decomposition raises for all where one is not
    leading = torch.linalg.eigh(torch.where(finite[..., None, None], gram, 0.0))[1][..., -1]
    direction = (centred @ leading[..., None])[..., 0] if few_cells else leading
    length = direction.norm(dim=-1, keepdim=True)
    varies = centred.abs().amax((-2, -1))[..., None] > 0
    unit = torch.where(varies, direction / length.where(length > 0, torch.ones_like(length)), 0.0)
    unit = torch.where(finite[..., None], unit, torch.nan)
    total = (unit * features.double().sum(-1)).sum(-1, keepdim=True)
    return torch.where(total < 0, -unit, unit).to(features.dtype)
