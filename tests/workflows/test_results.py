"""Cases in groups: all of them, then each class that has some."""

import numpy as np

from workflows.results import _by_class


def test_each_class_with_cases_is_a_group_in_their_order():
    groups = dict(_by_class(np.array([2, 0, 2, 0, 0], np.int32), ("a", "b", "c")))
    assert groups.pop("(all)") == slice(None)
    assert {name: places.tolist() for name, places in groups.items()} == {"a": [1, 3, 4], "c": [0, 2]}


def test_without_a_case_there_is_the_group_of_all_alone():
    assert [name for name, _ in _by_class(np.zeros(0, np.int32), ("a",))] == ["(all)"]
