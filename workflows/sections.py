"""What all sections of the configuration have in common."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import ConfigurationError

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Unknown keys are refused, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Checked = TypeVar("_Checked", bound=Section)


def checked(kind: type[_Checked], tree: dict[str, Any], name: str) -> _Checked:
    """Validate a tree of plain values; raises ConfigurationError that lists every fault of what `name` names."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        faults = [_fault(item) for item in error.errors()]
        raise ConfigurationError("\n".join([f"{name}: {len(faults)} fault(s)", *faults])) from error


def _fault(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "(top)"
    if item["type"] == "extra_forbidden":
        return f"  {where}: unknown key"
    if item["type"] == "missing":
        return f"  {where}: missing"
    return f"  {where}: {item['msg']} (got {item['input']!r})"
