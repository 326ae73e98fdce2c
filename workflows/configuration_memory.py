"""The section `explain.memory` of the configuration."""

from typing import Literal

from pydantic import Field, model_validator

from workflows.sections import Positive, Section


class Memory(Section):
    """The memory that m-cam needs: where it comes from, or how it is fitted."""

    file: str | None = Field(
        None, description="a fitted one: path, URL or mlflow:runs:/ID/memory.pt; none: the run fits its own"
    )
    split: str | None = Field(
        "train", description="split of the label file that is learned from; null: the audited images themselves"
    )
    features: Literal["cached", "recomputed"] = Field(
        "cached", description="read the archive once and keep the activations, or once an epoch and keep none"
    )
    workers: Positive | None = Field(
        None, description="processes that share a batch; none: one a GPU, or one; another number changes the last bits"
    )
    slots: Positive = Field(112, description="N")
    radius: float = Field(
        16.0, gt=0, allow_inf_nan=False, description="r of the address's softmax; with the paper's 1 it never is sparse"
    )
    epochs: Positive = Field(50, description="at most")
    batch: Positive = Field(64, description="images a step, over all workers")
    rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="learning rate of Adam")
    patience: Positive = Field(10, description="epochs without a smaller held-out loss, after which the fit ends")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the split's patients that judge and do not teach")
    mixed: Positive = Field(4, description="shards whose images are shuffled together, and read ahead as many")
    seed: int = Field(0, ge=0, description="of the first values, the order of images and the held-out part")
    draws: Positive = Field(16, description="noise draws that the slot search averages over")

    @model_validator(mode="after")
    def _fitted_or_to_fit(self) -> "Memory":
        recipe = [name for name in type(self).model_fields if name not in ("file", "draws")]
        others = [name for name in recipe if getattr(self, name) != type(self).model_fields[name].default]
        if self.file is not None and others:
            raise ValueError(f"`file` names a memory that is fitted: leave out {', '.join(others)}, or `file`")
        return self
