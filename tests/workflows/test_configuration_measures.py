"""What the section `measures` refuses."""

import pytest
from pydantic import ValidationError

from workflows.configuration_measures import Measures


@pytest.mark.parametrize(("replicates", "confidence"), [(100, 0.98), (1000, 0.95), (2000, 0.999), (800, 0.9975)])
def test_an_interval_has_a_replicate_beyond_each_end(replicates: int, confidence: float) -> None:
    assert Measures(replicates=replicates, confidence=confidence).replicates == replicates


@pytest.mark.parametrize(
    ("replicates", "confidence", "said"),
    [
        (99, 0.5, "greater than or equal to 100"),
        (100, 0.99, "expected 200 or more"),
        (1999, 0.999, "replicates: 1999 leave less than one"),
    ],
)
def test_replicates_that_are_too_few_for_the_confidence_are_refused(
    replicates: int, confidence: float, said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Measures(replicates=replicates, confidence=confidence)
