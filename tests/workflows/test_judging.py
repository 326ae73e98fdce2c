"""What was asked for and could not be measured."""

import pytest

from tasks.measures.names import GROUPS, MEASURES
from workflows.judging import LeftOut, unmeasured

EVERY = {measure.name for measure in MEASURES} | {"accuracy.principal", "concepts.disjoint", "probability"}


def test_what_has_a_number_is_not_left_out_nor_what_was_not_asked_for() -> None:
    assert unmeasured(set(GROUPS), EVERY) == []
    assert unmeasured({"drop", "performance"}, EVERY - {"insertion", "accuracy.principal"}) == []
    assert unmeasured(set(), set()) == []


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("drop", "in the sample: measures.masked_images"),
        ("curves", "in the sample: measures.perturbed_images"),
        ("iou", "has a box of its class; explain.targets"),
        ("pointing", "has a box of its class; explain.targets"),
        ("features", "principal features"),
        ("concepts", "no explained image has a box"),
        ("performance", "no explained image has a label"),
    ],
)
def test_a_group_without_any_number_is_left_out_as_a_whole_with_what_is_missing(group: str, said: str) -> None:
    (left,) = unmeasured({group}, {"mean probability"})
    assert (left.measure, left.category) == (group, None)
    assert said in left.reason


def test_a_measure_that_is_missing_beside_others_is_left_out_alone() -> None:
    assert unmeasured({"pointing", "iou"}, EVERY - {"pointing game small"}) == [
        LeftOut(
            "pointing game small", None, "no explained case has small boxes alone: measures.small says what is small"
        )
    ]
