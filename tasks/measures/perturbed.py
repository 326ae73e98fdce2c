"""How true and how steady a map is when the input is perturbed: infidelity and max-sensitivity (Yeh et al., 2019).

Both are captum's, in value. Their noise is drawn by `Probes.shaken` and `Probes.nudged`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def products(noise: Tensor, maps: Tensor, images: Tensor) -> Tensor:
    """I·Phi [n] float64, of one draw of noise [images,channels,*size], and maps [n,*size] of these images [n].

    A map stands for each channel alike.
    """
    return (noise.sum(1)[images] * maps).flatten(1).sum(1, dtype=torch.float64)


def infidelity(products: Tensor, changes: Tensor) -> Tensor:
    """E[(beta I·Phi - (f(x) - f(x - I)))^2] over draws, [draws,n] twice -> [n] float64, at least 0, lower is better.

    changes: f(x) - f(x - I) of the logit. beta = E[I·Phi (f(x) - f(x - I))] / E[(I·Phi)^2], the factor of the map that
    fits best, so that the scale of the map does not count; its sign does not count either. A map that is 0 everywhere
    has the mean square of the changes, the largest value there is.
    """
    ours, changes = products.double(), changes.double()
    squares = ours.square().sum(0)
    beta = (ours * changes).sum(0) / torch.where(squares > 0, squares, 1.0)
    return (beta * ours - changes).square().mean(0)


def max_sensitivity(original: Tensor, perturbed: Iterable[Tensor]) -> Tensor:
    """max over draws of |Phi(x + I) - Phi(x)| / |Phi(x)|, Frobenius norms, of maps [n,*size] -> [n] float64, lower is
    better. A map that is 0 everywhere has norm 1 here, as in captum."""
    norm = _norm(original)
    norm = torch.where(norm > 0, norm, 1.0)
    largest = torch.zeros_like(norm)
    for maps in perturbed:
        largest = torch.maximum(largest, _norm(maps - original) / norm)
    return largest


def _norm(maps: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(maps.flatten(1), dim=1, dtype=torch.float64)
    return norm
