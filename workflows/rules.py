"""How each base method is computed, as the configuration says."""

from collections.abc import Iterable

from storage.errors import ConfigurationError
from tasks.atlas import Regions
from tasks.baselines import LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.cams.mcam import MCam
from tasks.cams.rules import IsCam, SmoothGradCamPlusPlus, SsCam
from tasks.glas import Glas, Recursive
from tasks.memory import Memory
from tasks.methods import METHODS, GlasMap, Method, RglasMap
from workflows.configuration import Explain


def rules_of(
    explain: Explain,
    bases: Iterable[str],
    *,
    axes: int = 2,
    regions: Regions | None = None,
    memory: Memory | None = None,
) -> dict[str, Method]:
    """How base methods are computed, as configured. axes: of the input; regions: where GLAS may search; memory: of
    M-CAM, once it is fitted.

    Raises ConfigurationError.
    """
    noise, asked, others = explain.perturbation, explain.glas, explain.baselines
    try:
        glas = Glas(
            asked.points,
            asked.light,
            asked.shadow,
            asked.spatial,
            asked.unit,
            asked.offset,
            asked.coarse,
            asked.share,
            axes=axes,
            places=regions.centroids() if regions is not None and asked.search == "atlas" else None,
        )
    except ValueError as error:
        raise ConfigurationError(f"explain.glas.{error}.") from error
    configured: dict[str, Method] = dict(METHODS) | {
        "smooth-grad-cam++": SmoothGradCamPlusPlus(noise.smooth_draws, noise.smooth_std),
        "ss-cam": SsCam(noise.ss_draws, noise.ss_std),
        "is-cam": IsCam(noise.is_steps),
        "m-cam": MCam(memory, explain.memory.draws),
        "glas": GlasMap("fusion", glas),
        "glas-light": GlasMap("light", glas),
        "glas-shadow": GlasMap("shadow", glas),
        "rglas": RglasMap(Recursive(glas, asked.reach, asked.ratio, asked.iterations)),
        "occlusion": OcclusionMap(others.occlusion_cells, others.occlusion_window, others.occlusion_stride, axes),
        "rise": RiseMap(others.rise_masks, others.rise_cells, others.rise_share),
        "lime": LimeMap(others.lime_samples, others.lime_cells, others.lime_width, others.lime_ridge),
        "meaningful-perturbation": MeaningfulPerturbation(
            others.perturbation_cells,
            others.perturbation_steps,
            rate=others.perturbation_rate,
            l1=others.perturbation_l1,
            tv=others.perturbation_tv,
            beta=others.perturbation_beta,
        ),
    }
    return {base: configured[base] for base in bases}
