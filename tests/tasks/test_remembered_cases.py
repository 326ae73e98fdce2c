"""What M-CAM's memory says of each case in pass 2: of its own image and class, and nothing where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.cams.names import MethodName
from tasks.capture import capturing
from tasks.explain import REMEMBERED, ExplainSettings, explain_shard
from tasks.memory import pooled
from tasks.slots import find_slots, noise_cosines
from tests.tasks.small_classifiers import QUICK_METHODS, deep_head, names, pictures, pixels, small, some_truth
from tests.tasks.test_profile import Fragile

COUNT = 7
MEMORY = QUICK_METHODS["m-cam"].memory


def explain(model, images, *methods, **options):
    settings = ExplainSettings(tuple(map(MethodName.parse, methods)), rules=QUICK_METHODS, batch=3, **options)
    return explain_shard(model, images, names(images), some_truth(len(images)), settings, limits={}, masks={})


@pytest.mark.parametrize(("targets", "columns"), [("predicted", 1), ("labelled", 3), ((4, 1), 2)])
def test_each_case_has_the_slot_of_its_own_image_and_class(targets, columns):
    model, images = small(deep_head()), pictures(COUNT)
    found = explain(model, images, "m-cam", targets=targets, columns=columns)
    assert {name: values.dtype.name for name, values in found.remembered.items()} == REMEMBERED
    for row, (image, name) in enumerate(zip(images, names(images), strict=True)):
        with capturing(model) as capture, torch.no_grad():
            query = pooled(capture(pixels(model, [image])).activation)
            hung = find_slots(MEMORY, query, noise_cosines([name], 12, MEMORY.slots))
            logits = MEMORY(query)
        for column, target in enumerate(found.classes[row]):
            told = [values[row, column] for values in found.remembered.values()]
            if target < 0:
                assert told[0] == -1
                assert np.isnan(told[1:]).all()
            else:
                assert told[0] == hung.slot[0, target]
                expected = [float(values[0, target]) for values in (hung.drop, hung.steady, logits)]
                np.testing.assert_allclose(told[1:], expected, rtol=1e-4, atol=1e-5)
    assert (found.classes < 0).any() == (targets == "labelled")


def test_an_image_that_fails_has_none_and_the_others_keep_theirs():
    model, images = small(), pictures(COUNT)
    expected = explain(model, images, "m-cam").remembered
    images[4] = np.zeros_like(images[4])
    found = explain(replace(model, module=Fragile(model.module)), images, "m-cam")
    assert list(found.failures) == [4]
    assert found.remembered["slot"][4].tolist() == [-1]
    assert np.isnan([found.remembered[name][4] for name in ("drop", "steady", "logit")]).all()
    others = np.arange(COUNT) != 4
    assert np.array_equal(found.remembered["slot"][others], expected["slot"][others])


def test_a_shard_without_a_good_image_has_the_same_arrays_and_an_audit_without_m_cam_has_none():
    found = explain(small(), [], "m-cam")
    assert {name: (values.dtype.name, values.shape) for name, values in found.remembered.items()} == {
        name: (dtype, (0, 1)) for name, dtype in REMEMBERED.items()
    }
    assert explain(small(), pictures(2), "grad-cam").remembered == {}
