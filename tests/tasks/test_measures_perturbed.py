"""Infidelity and max-sensitivity, against captum fed with the same perturbations, and the noise itself."""

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max

from tasks.cams.heads import Head
from tasks.capture import capturing
from tasks.measures.perturbed import infidelity, max_sensitivity, products
from tests.tasks.small_classifiers import (
    deep_head,
    evidence_of,
    from_torchvision,
    names,
    pictures,
    pixels,
    rounding,
    small,
)

DRAWS = 6
IMAGES = torch.tensor([0, 0, 2, 1, 2])  # of five cases
CLASSES = torch.tensor([0, 3, 3, 1, 4])
SOME = [0, 1, 2]


@pytest.fixture(scope="module", params=["resnet18", "deep head"])
def model(request):
    return from_torchvision("resnet18") if request.param == "resnet18" else small(deep_head())


def shown(model, count=3):
    return pictures(count, size=model.preprocess.size[0])


def some_maps(model):
    """Signed maps of the five cases, one of them 0 everywhere."""
    maps = torch.randn(5, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
    maps[4] = 0
    return maps


def shaken(model, std=0.01):
    """Noise [draws,images,channels,H,W] and changes of the logits [draws,images,C]."""
    with evidence_of(model, shown(model), CLASSES[:1]) as evidence:
        noise, changes = zip(*evidence.probes.shaken(SOME, DRAWS, std), strict=True)
    return torch.stack(noise), torch.stack(changes)


def measured(noise, maps, changes):
    return infidelity(torch.stack([products(draw, maps, IMAGES) for draw in noise]), changes[:, IMAGES, CLASSES])


def captums(forward, model, maps, noise, **options):
    def perturb(inputs):
        drawn = noise[:, IMAGES].transpose(0, 1).flatten(0, 1)  # captum repeats each input for all of its draws
        return drawn, inputs - drawn

    inputs = pixels(model, shown(model))[IMAGES].double()
    attributions = maps[:, None].expand_as(inputs).double()
    return captum_infidelity(forward, perturb, inputs, attributions, target=CLASSES, n_perturb_samples=DRAWS, **options)


def test_infidelity_is_captums_normalised_one_of_the_logits(model):
    """captum adds up the squares and products of float32 numbers and multiplies out, which cancels: here it has
    float64. Not normalised, it is another measure: the map's scale decides. So does a softmax in the model."""
    noise, changes = shaken(model)
    maps = some_maps(model)
    found = measured(noise, maps, changes)
    exact = pixels(model, shown(model)).double()
    with torch.no_grad():
        module = model.module.double()
        expected = captums(module, model, maps, noise.double(), normalize=True)
        plain = captums(module, model, maps, noise.double(), normalize=False)
        softmax = captums(lambda x: module(x).softmax(1), model, maps, noise.double(), normalize=True)
        direct = module(exact)[IMAGES, CLASSES] - torch.stack(
            [module(exact[IMAGES] - draw[IMAGES])[torch.arange(5), CLASSES] for draw in noise.double()]
        )
        model.module.float()
    error = changes[:, IMAGES, CLASSES].double() - direct
    assert error.abs().max() <= rounding(model, pixels(model, shown(model)))  # a change is of two logits as well
    # Normalised, it is the mean square of what is left of the changes beside the products: a projection, whose length
    # follows no error of the changes by more than the error's own length.
    assert ((found.sqrt() - expected.sqrt()).abs() <= error.square().mean(0).sqrt() + 1e-12).all()
    assert (found[:4] < changes[:, IMAGES, CLASSES].double().square().mean(0)[:4]).all()
    for other in (plain, softmax):
        assert not torch.allclose(found[:4], other[:4], rtol=0.1)


def test_infidelity_of_a_map_that_is_0_everywhere_is_the_mean_square_of_the_changes(model):
    noise, changes = shaken(model)
    expected = changes[:, IMAGES, CLASSES].double().square().mean(0)
    torch.testing.assert_close(measured(noise, torch.zeros_like(some_maps(model)), changes), expected)


@pytest.mark.parametrize("factor", [1e-3, 100.0, -1.0])
def test_neither_scale_nor_sign_of_a_map_counts_in_infidelity(model, factor):
    noise, changes = shaken(model)
    maps = some_maps(model)
    found = measured(noise, factor * maps, changes)
    torch.testing.assert_close(found, measured(noise, maps, changes), rtol=1e-4, atol=0)


def test_a_map_that_tells_the_changes_has_no_infidelity():
    """z_c = sum of a w over channels and cells: w is its own explanation."""
    noise = torch.randn(DRAWS, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(1))
    told = torch.stack([products(draw, weights, IMAGES) for draw in noise])
    assert infidelity(told, 7 * told).abs().max() < 1e-9


def test_a_map_stands_for_each_channel_alike_in_images_and_in_volumes():
    for size in ((4, 5), (3, 4, 5)):
        noise = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0))
        maps = torch.randn(5, *size, generator=torch.Generator().manual_seed(1))
        expected = [(noise[i].double() * one.double()).sum() for i, one in zip(IMAGES.tolist(), maps, strict=True)]
        torch.testing.assert_close(products(noise, maps, IMAGES), torch.stack(expected), rtol=1e-5, atol=1e-5)


def grad_cams(capture, head, inputs):
    """Signed Grad-CAM [n,h,w] of CLASSES of the inputs."""
    forward = capture(inputs)
    targets = CLASSES.repeat_interleave(len(inputs) // 5)[:, None]
    ((_, gradient),) = head.gradients(forward, targets, 1)
    return gradient.averaged().saliency(forward.activation)[:, 0]


def test_max_sensitivity_is_captums_and_so_are_maps_of_norm_0(model):
    """captum divides by the norm of the map at hand, and by 1 where that is 0: both happen here."""
    radius = 0.5
    hushed = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])[:, None, None]  # the original map of the third case is 0
    with evidence_of(model, shown(model), CLASSES[:1]) as evidence:
        nudged = [probes.pixels for probes in evidence.probes.nudged(SOME, DRAWS, radius)]
        inputs = evidence.probes.pixels[IMAGES]
    drawn = torch.stack(nudged)[:, IMAGES].transpose(0, 1).flatten(0, 1)
    head = Head(None, 1e-5)
    with capturing(model) as capture:

        def explain(given):
            original = isinstance(given, tuple)  # captum hands on the inputs as a tuple, perturbed ones as a tensor
            maps = grad_cams(capture, head, given[0] if original else given)
            return (maps * hushed if original else maps,)

        expected = sensitivity_max(explain, inputs, lambda _: drawn, n_perturb_samples=DRAWS)
        original = grad_cams(capture, head, inputs) * hushed
        found = max_sensitivity(original, (grad_cams(capture, head, one[IMAGES]) for one in nudged))
    assert found.dtype == torch.float64
    assert (found > 1e-3).all()
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-6)


def test_max_sensitivity_is_the_largest_over_draws_in_images_and_in_volumes():
    for size in ((4, 5), (3, 4, 5)):
        random = np.random.default_rng(0)
        original, *draws = random.normal(size=(4, 2, *size))
        expected = [
            max(np.linalg.norm(draw[i] - original[i]) / np.linalg.norm(original[i]) for draw in draws) for i in range(2)
        ]
        found = max_sensitivity(torch.from_numpy(original), map(torch.from_numpy, draws))
        np.testing.assert_allclose(found, expected)


def test_a_map_that_does_not_move_has_no_sensitivity():
    maps = torch.rand(2, 4, 4)
    assert max_sensitivity(maps, [maps, maps]).tolist() == [0, 0]


def test_noise_follows_from_the_image_alone_and_not_from_the_batch_or_the_other_images_asked(device):
    model = small(deep_head(), device=device)
    three, two = pictures(3), pictures(3)[1:]
    with evidence_of(model, three, CLASSES[:1].to(device)) as evidence:
        whole = list(evidence.probes.shaken(SOME, 2, 0.1))
        part = list(evidence.probes.shaken([2], 2, 0.1))
        nudged = [probes.pixels for probes in evidence.probes.nudged(SOME, 2, 0.1)]
    with evidence_of(model, two, CLASSES[:1].to(device)) as evidence:
        other = list(evidence.probes.shaken([0, 1], 2, 0.1))
        moved = [probes.pixels for probes in evidence.probes.nudged([1], 2, 0.1)]
    for draw in range(2):
        assert torch.equal(whole[draw][0][2:], part[draw][0])
        assert torch.equal(whole[draw][0][1:], other[draw][0])
        assert torch.equal(nudged[draw][2:], moved[draw])
        torch.testing.assert_close(whole[draw][1][1:], other[draw][1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[draw][1][2:], part[draw][1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole[0][0], whole[1][0])
    assert not torch.equal(whole[0][0][0], whole[0][0][1])


def test_gaussian_noise_has_its_deviation_and_uniform_noise_its_radius():
    model = small(size=64)
    with evidence_of(model, pictures(1, size=64), CLASSES[:1], Head(None, 1e-5)) as evidence:
        ((gaussian, _),) = evidence.probes.shaken([0], 1, 0.003)
        (probes,) = evidence.probes.nudged([0], 1, 0.02)
        uniform = probes.pixels - evidence.probes.pixels
    assert gaussian.std().item() == pytest.approx(0.003, rel=0.02)
    assert abs(gaussian.mean().item()) < 1e-4
    assert uniform.abs().max() <= 0.02 + 1e-6
    assert uniform.std().item() == pytest.approx(0.02 / 3**0.5, rel=0.02)


def test_the_changes_are_asked_once_however_many_maps_there_are():
    model = small(deep_head())
    asked = []
    model.module.register_forward_hook(lambda _module, inputs, _output: asked.append(len(inputs[0])))
    with evidence_of(model, pictures(3), CLASSES[:1]) as evidence:
        asked.clear()
        first = list(evidence.probes.shaken(SOME, DRAWS, 0.01))
        second = list(evidence.probes.shaken(SOME, DRAWS, 0.01))
        assert asked == [3] * DRAWS
        list(evidence.probes.shaken([1], 1, 0.01))
        assert asked == [3] * DRAWS + [1]
    for (noise, change), (again, same) in zip(first, second, strict=True):
        assert torch.equal(noise, again)
        assert change is same


def test_nudged_probes_answer_for_the_nudged_images_under_their_own_names():
    model = small(deep_head())
    images = pictures(3)
    with evidence_of(model, images, CLASSES[:1]) as evidence:
        (nudged,) = evidence.probes.nudged([2, 0], 1, 0.5)
        assert nudged.names == [names(images)[2], names(images)[0]]
        with torch.no_grad():
            expected = model.module(nudged.pixels)
        torch.testing.assert_close(nudged.forward.logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(nudged.probabilities, model.probabilities(expected), rtol=1e-4, atol=1e-5)
        assert nudged.ablated().shape == (2, 12, 5)
