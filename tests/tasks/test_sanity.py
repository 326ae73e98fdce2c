"""Sanity checks: what ignores the model fails, what hangs on it passes, and the model stays as it is."""

from dataclasses import dataclass, field, replace
from math import isnan, nan

import numpy as np
import pytest
import torch
import torchvision
from scipy.stats import spearmanr
from torch import Tensor, nn

from examples.digits.canvases import draw, read_digits
from examples.digits.digits_model import classes, preprocess
from examples.digits.training import train
from storage.errors import ModelError
from tasks.cams.evidence import Evidence
from tasks.cams.names import MethodName
from tasks.cams.scaling import resized
from tasks.classifier import Classifier
from tasks.explain import ExplainSettings
from tasks.redrawing import in_forward_order, redrawn
from tasks.sanity import CHECKS, Likeness, Repeated, Sample, SanitySettings, check_sanity, forwards
from tests.tasks.small_classifiers import QUICK_METHODS, TwoLayers, classifier, names, pictures, pooled_head, small

SEED = SanitySettings(seed=3)


@dataclass(frozen=True, slots=True)
class Edges:
    """A map of the image's edges: it asks the model nothing."""

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        grey = evidence.probes.pixels.mean(1, keepdim=True)
        edges = nn.functional.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1))
        return resized(edges, size).expand(-1, evidence.classes.shape[-1], -1, -1)

    def forwards(self, features: int, head: str) -> int:
        return 0

    @property
    def by_class(self) -> bool:
        return False


class Dice(Edges):
    """A map that is another one each time."""

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        return 1000 * torch.rand(len(evidence.probes.pixels), evidence.classes.shape[-1], *size)


class Flat(Edges):
    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        return torch.ones(len(evidence.probes.pixels), evidence.classes.shape[-1], *size)


# Under names of methods that exist.
RULES = {**QUICK_METHODS, "gradient": Edges(), "lime": Dice(), "occlusion": Flat()}


def settings(*methods, batch=3, rules=RULES):
    return ExplainSettings(tuple(map(MethodName.parse, methods)), batch=batch, rules=rules)


def sample(images):
    return Sample(images, names(images), [None] * len(images))


def check(model, *methods, asked=SEED, images=None, **options):
    images = pictures(5) if images is None else images
    masks = options.pop("masks", {})
    return check_sanity(model, sample(images), settings(*methods), asked, masks=masks, **options)


def weights_of(module):
    return {name: values.clone() for name, values in module.state_dict().items()}


def same(before, module):
    after = module.state_dict()
    return before.keys() == after.keys() and all(torch.equal(values, after[name]) for name, values in before.items())


@pytest.fixture(scope="module")
def digits():
    """A classifier that learned digits for one epoch, and canvases that it never saw."""
    known = read_digits()
    module = train(known, epochs=1, seed=0, say=lambda _: None).requires_grad_(False)
    model = Classifier(module, "features", classes, "one-label", preprocess, torch.device("cpu"))
    return model, [(canvas * 255).astype(np.uint8) for canvas in draw(known, seed=99).pixels[:12]]


def test_a_map_of_edges_fails_and_grad_cam_of_a_trained_model_passes(digits):
    model, images = digits
    whole = check(model, "grad-cam", "gradient", images=images).randomised[-1].likeness
    assert whole["gradient"].similarity == pytest.approx(1)
    assert abs(whole["grad-cam"].similarity) < 0.3
    assert whole["grad-cam"].n == 12


def test_maps_of_what_lights_up_stay_alike_whatever_the_model_learned(digits):
    """Weights without a sign, as Layer-CAM's, show where features answer: on a dark canvas that is the bright digit."""
    model, images = digits
    whole = check(model, "layer-cam", images=images).randomised[-1].likeness
    assert whole["layer-cam"].similarity > 0.5


def test_ranks_are_those_of_scipy_ties_included():
    random = np.random.default_rng(0)
    originals = random.integers(-4, 5, (9, 6, 7)).astype(np.float32)
    others = (originals + random.normal(0, 4, originals.shape)).round().astype(np.float32)
    expected = [spearmanr(one.ravel(), other.ravel()).statistic for one, other in zip(originals, others, strict=True)]
    found = Likeness.of(originals, others)
    assert found.similarity == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.magnitude == pytest.approx(np.mean(np.abs(expected)), abs=1e-12)
    assert (found.unranked, found.n) == (0, 9)


def test_a_map_that_went_flat_or_mad_counts_as_unlike_and_a_flat_original_does_not_count():
    ramp = np.arange(12, dtype=np.float32).reshape(3, 4)
    flat, mad = np.ones_like(ramp), np.where(ramp == 5, np.inf, ramp).astype(np.float32)
    found = Likeness.of(np.stack([ramp] * 4 + [flat]), np.stack([ramp, flat, mad, -ramp, ramp]))
    assert found == Likeness(similarity=0.0, magnitude=0.5, unranked=2, n=4)
    nothing = Likeness.of(flat[None], ramp[None])
    assert nothing.n == 0
    assert isnan(nothing.similarity)


def test_weights_are_drawn_anew_from_the_output_to_the_input():
    model = classifier(torchvision.models.resnet18(num_classes=5), "layer4", size=64)
    before = weights_of(model.module)
    drawn: list[str] = []
    stages = 0
    for stage in redrawn(model, steps=4, seed=0):
        stages += 1
        drawn += stage.names
        after = stage.classifier.module.state_dict()
        moved = {name.rpartition(".")[0] for name, values in before.items() if not torch.equal(values, after[name])}
        # A batch norm that has seen nothing is already as it starts.
        assert moved == {name for name in drawn if not isinstance(model.module.get_submodule(name), nn.BatchNorm2d)}
        assert stage.modules == len(drawn)
    assert (stages, drawn[0], drawn[-1]) == (4, "fc", "conv1")
    assert drawn.index("layer4.1.conv1") < drawn.index("layer4.0.conv2") < drawn.index("layer1.0.conv1")
    assert same(before, model.module)


class Backwards(nn.Module):
    """Its parts are registered from the output to the input; one runs twice, and one is never called."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.lent = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        x = self.twice(self.first(self.twice(x)))
        return self.out(nn.functional.linear(x, self.lent.weight))


def test_the_order_is_that_of_a_forward_and_not_of_registration():
    assert in_forward_order(Backwards(), torch.zeros(1, 4)) == ["lent", "first", "twice", "out"]


def test_the_last_stage_is_the_same_for_any_number_of_steps_and_another_for_another_seed():
    model = small()

    def last(steps, seed):
        return weights_of([stage for stage in redrawn(model, steps=steps, seed=seed)][-1].classifier.module)

    one, three, other = last(1, 0), last(3, 0), last(3, 1)
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_modules_of_one_shape_get_weights_of_their_own():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    *_, last = redrawn(classifier(module, "0", classes=3), steps=1, seed=0)
    one, other = (last.classifier.module[place].weight for place in (0, 1))
    assert not torch.equal(one, other)


def test_drawing_weights_leaves_the_worlds_random_numbers_alone():
    model = small()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(redrawn(model, steps=2, seed=0))
    assert torch.equal(torch.rand(3), expected)


class Plain(nn.Module):
    """Weights without an initialisation of their own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(4, 3))
        self.register_buffer("constant", torch.arange(5.0))

    def forward(self, x):
        return (x.flatten(2).mean(2)[:, :3] @ self.weight.T).relu()


def test_a_module_without_an_initialisation_gets_its_own_values_in_another_order():
    model = classifier(Plain(), "", classes=4)
    ((drawn),) = [stage.classifier.module for stage in redrawn(model, steps=6, seed=0)]
    assert sorted(drawn.weight.flatten().tolist()) == list(range(12))
    assert not torch.equal(drawn.weight, model.module.weight)
    assert torch.equal(drawn.constant, model.module.constant)


def test_statistics_of_a_batch_norm_are_forgotten():
    norm = nn.BatchNorm2d(8)
    norm.running_mean.fill_(3)
    norm.running_var.fill_(7)
    module = TwoLayers(pooled_head())
    module.trunk.insert(1, norm)
    *_, last = redrawn(classifier(module, "trunk"), steps=6, seed=0)
    found = last.classifier.module.trunk[1]
    assert (found.running_mean.unique().tolist(), found.running_var.unique().tolist()) == ([0], [1])


class Stubborn(nn.Linear):
    """It starts once, and refuses to start again."""

    def reset_parameters(self):
        if not self.weight.requires_grad:
            raise RuntimeError("no")
        super().reset_parameters()


def test_a_model_that_refuses_is_left_out_with_the_reason_and_stays_as_it_was():
    model = small(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Stubborn(12, 5)))
    before, hooks = weights_of(model.module), [len(part._forward_pre_hooks) for part in model.module.modules()]
    found = check(model, "grad-cam")
    assert found.randomised == ()
    assert found.left_out == {
        "randomised": "the weights of module 'head.2' (Stubborn) cannot be drawn anew (RuntimeError)"
    }
    assert found.repeated["grad-cam"].again == 0
    assert same(before, model.module)
    assert [len(part._forward_pre_hooks) for part in model.module.modules()] == hooks
    with pytest.raises(ModelError, match=r"head\.2"):
        list(redrawn(model, steps=1, seed=0))


def test_the_model_is_as_it_was_after_all_checks(device):
    model = small(device=device)
    before, modes = weights_of(model.module), [part.training for part in model.module.modules()]
    check(model, "grad-cam", "glas", permuted=small(seed=9, device=device), asked=SanitySettings(frozenset(CHECKS)))
    assert same(before, model.module)
    assert [part.training for part in model.module.modules()] == modes
    assert not any(values.requires_grad for values in model.module.parameters())


def test_checks_are_the_same_to_the_bit_when_they_are_made_again():
    asked = SanitySettings(frozenset(CHECKS), seed=4)
    one, other = (check(small(), "grad-cam", "rise", asked=asked, permuted=small(seed=9)) for _ in range(2))
    assert replace(one, seconds={}) == replace(other, seconds={})


def test_methods_that_draw_nothing_new_give_the_same_map_again():
    every = [base for base in QUICK_METHODS if base not in ("gradient", "lime", "occlusion")]
    found = check(small(), *every).repeated
    assert {name: item.again for name, item in found.items()} == dict.fromkeys(every, 0)
    # Rows of a batch can end in other lanes of a vector: what a sum over an input's 768 values can lose.
    assert max(item.beside for item in found.values()) < 8 * 768**0.5 * 2**-24
    assert max(item.alone for item in found.values()) < 1e-4  # sums in another order


@dataclass(frozen=True)
class Mad(Edges):
    """In one cell not finite: of bright images, of all, or of all but the first time."""

    when: str
    seen: list[int] = field(default_factory=list)

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        found = super().saliency(evidence, size).clone()
        self.seen.append(len(found))
        bright = evidence.probes.pixels.mean((1, 2, 3)) > 1.5
        mad = {"bright": bright, "always": bright | True, "again": bright | (len(self.seen) > 1)}[self.when]
        found[mad, ..., 0, 0] = torch.nan
        return found


def repeated_when_mad(when):
    bright = [np.full((16, 16, 3), 255, np.uint8)]
    shown = settings("gradient", batch=8, rules={**RULES, "gradient": Mad(when)})
    images = pictures(3) + bright
    return check_sanity(small(), sample(images), shown, SEED, masks={}).repeated["gradient"]


def test_a_map_that_is_not_finite_tells_nothing_of_repetition():
    found = repeated_when_mad("always")
    assert isnan(found.again)
    assert isnan(found.beside)
    assert isnan(found.alone)
    assert isnan(found.largest)
    assert repeated_when_mad("bright").largest == 0


def test_a_map_that_is_finite_once_only_is_another_one():
    assert repeated_when_mad("again").largest == 1


def test_what_is_known_of_repetition_counts_beside_what_is_not():
    assert Repeated(nan, 0.5, nan).largest == Repeated(0.5, nan, 0.2).largest == 0.5


def test_a_method_that_throws_dice_is_caught():
    found = check(small(), "grad-cam", "lime").repeated
    assert min(found["lime"].again, found["lime"].beside, found["lime"].alone) > 0.3
    assert found["lime"].largest <= 1  # of the map's own magnitude
    assert found["lime"].largest == max(found["lime"].again, found["lime"].beside, found["lime"].alone)


def test_a_model_of_permuted_labels_is_compared_where_it_is_asked_for():
    model, every = small(), SanitySettings(frozenset(CHECKS))
    alike = check(model, "grad-cam", "gradient", asked=every, permuted=small()).permuted
    assert alike["grad-cam"].similarity == pytest.approx(1)
    other = check(model, "grad-cam", "gradient", asked=every, permuted=small(seed=9)).permuted
    assert other["grad-cam"].similarity < 0.9
    assert other["gradient"].similarity == pytest.approx(1)
    assert check(model, "grad-cam", permuted=small(seed=9)).permuted == {}


def test_maps_are_of_the_class_that_the_original_predicts():
    """Without an image the map of a class is one number's sign: only the head's rows for that class tell it."""
    model = small()
    module = small().module
    module.head[2].weight.data = module.head[2].weight.data.roll(1, 0)  # classes renamed: other predictions
    module.head[2].bias.data = module.head[2].bias.data.roll(1, 0)
    renamed = replace(model, module=module)
    found = check(model, "grad-cam", asked=SanitySettings(frozenset(["permuted"])), permuted=renamed).permuted
    assert found["grad-cam"].similarity < 0.9  # of each one's own prediction they would be the same


def test_principal_features_stay_those_of_the_original():
    mask = np.zeros((12, 5), bool)
    mask[3] = True
    found = check(small(), "grad-cam", "fs-grad-cam", masks={"grad-cam": mask})
    assert set(found.randomised[-1].likeness) == set(found.repeated) == {"grad-cam", "fs-grad-cam"}
    head_alone = found.randomised[0].likeness["fs-grad-cam"]
    assert head_alone.magnitude == pytest.approx(1)  # one feature times another number


def test_what_has_no_weights_is_left_out_with_the_reason():
    class Sums(nn.Module):
        def forward(self, x):
            return x.flatten(2).mean(2).repeat(1, 2)[:, :5]

    model = replace(classifier(Sums(), "none"), layer=None)
    found = check(model, "glas")
    assert found.randomised == ()
    assert found.left_out == {"randomised": "the model only answers: it shows no weights that could be drawn anew"}
    assert found.repeated["glas"].again == 0


def test_an_image_that_fails_is_left_out_and_counted():
    class Choosy(TwoLayers):
        def forward(self, images):
            dark = images.amax((1, 2, 3), keepdim=True) < -1.9
            return super().forward(torch.where(dark, torch.nan, images))

    images = pictures(4)
    images[2] = np.zeros_like(images[2])
    found = check(classifier(Choosy(pooled_head()), "trunk"), "grad-cam", images=images)
    assert found.images == 3
    assert list(found.failures) == [2]
    assert found.randomised[-1].likeness["grad-cam"].n == 3
    every = check(classifier(Choosy(pooled_head()), "trunk"), "grad-cam", images=[images[2]])
    assert (every.images, every.randomised, every.seconds) == (0, (), {})


def test_a_map_that_is_flat_has_no_likeness():
    found = check(small(), "occlusion").randomised[-1].likeness["occlusion"]
    assert found.n == 0
    assert isnan(found.similarity)


def test_seconds_are_those_of_each_base_method_alone():
    seconds = check(small(), "grad-cam", "s-grad-cam", "rise").seconds
    assert set(seconds) == {"grad-cam", "rise"}
    assert min(seconds.values()) > 0


@pytest.mark.parametrize("checks", [CHECKS, ("repeated",), ("randomised",)])
def test_forwards_are_those_that_are_made(checks):
    """Grad-CAM shares the one forward, RISE asks for its masks besides."""
    model, other, counted = small(), small(seed=9), []
    for one in (model, other):
        one.module.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    asked = SanitySettings(frozenset(checks), steps=2)
    check(model, "grad-cam", "rise", asked=asked, permuted=other)
    masks = QUICK_METHODS["rise"].masks
    for_the_order = 1 if "randomised" in checks else 0
    assert sum(counted) - for_the_order == forwards(5, asked, together=1 + masks, alone=1 + 1 + masks)


def test_volumes_are_checked_too():
    trunk = nn.Sequential(nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.ReLU())
    module = nn.Sequential(trunk, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)).eval().requires_grad_(False)
    model = Classifier(
        module,
        "0",
        ("a", "b", "c"),
        "one-label",
        replace(preprocess, resize=None, crop=(8, 8, 8), mean=(0.5,), std=(0.25,)),
        torch.device("cpu"),
    )
    random = np.random.default_rng(0)
    volumes = [random.integers(0, 256, (8, 8, 8, 1), np.uint8) for _ in range(3)]
    found = check(model, "grad-cam", images=volumes)
    assert found.randomised[-1].likeness["grad-cam"].n == 3
    assert found.repeated["grad-cam"].again == 0
