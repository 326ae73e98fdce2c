"""The section `findings` of the configuration."""

from pydantic import Field

from workflows.sections import Section


class Findings(Section):
    """From which number on something is listed as a finding."""

    silent: float = Field(0.001, ge=0, le=1, description="share of cells above zero below which a feature is silent")
    dominant: float = Field(0.25, gt=0, le=1, description="share of a class's importance that makes a feature dominant")
    agreement: float = Field(
        0.9, ge=0, le=1, description="below which M-CAM's memory does not decide as the model does"
    )
    shared_slot: float = Field(
        0.25, ge=0, le=1, description="share of a class's images above which its most used slot counts as shared"
    )
    steady: float = Field(0.5, ge=0, le=1, description="share of noise draws that find a class's slot, at least")
