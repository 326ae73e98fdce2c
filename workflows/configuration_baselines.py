"""The section `explain.baselines` of the configuration."""

from pydantic import Field, model_validator

from workflows.sections import Positive, Section


class Baselines(Section):
    """Methods of others, for comparison: what they hide, and how often."""

    occlusion_cells: Positive = Field(
        15, description="cells a side of the image; what a square hides is counted in them"
    )
    occlusion_window: Positive = Field(3, description="cells a side of the dark square")
    occlusion_stride: Positive = Field(1, description="cells by which it moves on; the window at most")
    rise_masks: Positive = Field(
        2000, description="N of RISE: an image costs as many forwards; the paper takes 4000 to 8000"
    )
    rise_cells: Positive = Field(7, description="h = w of RISE: cells a side of a mask before it is upsampled")
    rise_share: float = Field(0.5, gt=0, lt=1, description="p of RISE: the part of a mask's cells that show the image")
    lime_samples: Positive = Field(1000, description="N of LIME: an image costs as many forwards")
    lime_cells: Positive = Field(7, description="cells a side of the image; LIME's paper has superpixels instead")
    lime_width: float = Field(0.25, gt=0, description="sigma of LIME's kernel on the cosine distance")
    lime_ridge: float = Field(1.0, ge=0, description="strength of the ridge regression")
    perturbation_cells: Positive = Field(28, description="cells a side of meaningful perturbation's mask")
    perturbation_steps: Positive = Field(300, description="N: steps of Adam for each class, two forwards' worth each")
    perturbation_rate: float = Field(0.1, gt=0, description="gamma: the learning rate")
    perturbation_l1: float = Field(1e-4, ge=0, description="lambda_1: price of what is deleted, a cell")
    perturbation_tv: float = Field(1e-2, ge=0, description="lambda_2: price of differences between neighbouring cells")
    perturbation_beta: float = Field(3.0, ge=1, description="beta: power of those differences")

    @model_validator(mode="after")
    def _window_reaches_everywhere(self) -> "Baselines":
        if not self.occlusion_stride <= self.occlusion_window <= self.occlusion_cells:
            raise ValueError(
                "expected occlusion_stride <= occlusion_window <= occlusion_cells, "
                f"got {self.occlusion_stride}, {self.occlusion_window} and {self.occlusion_cells}"
            )
        return self
