"""The memory of M-CAM and the search of its slots, against plain loops. All features here are synthetic."""

from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.nn.functional import cosine_similarity

from storage.errors import ModelError
from tasks.memory import Memory, pooled, spatial_bytes
from tasks.slots import drops, find_slots, noise_cosines

FEATURES, CLASSES, CELLS = 6, 4, (3, 2)


def some_memory(slots=5, radius=16.0, seed=0, cells=CELLS):
    return Memory.seeded(seed, FEATURES, cells, CLASSES, slots=slots, radius=radius)


def some_features(count=3, seed=1, cells=CELLS):
    return torch.randn(count, FEATURES, *cells, generator=torch.Generator().manual_seed(seed)).relu()


def some_labels(count=3, seed=2):
    return (torch.rand(count, CLASSES, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def softmaxed(values):
    terms = [exp(value) for value in values]
    return [term / sum(terms) for term in terms]


def addresses(memory, queries, stored):
    return [
        softmaxed([memory.radius * float(cosine_similarity(query, slot, dim=0)) for slot in stored.detach()])
        for query in queries.detach()
    ]


@pytest.mark.parametrize("radius", [1.0, 16.0])
def test_an_address_is_the_softmax_of_r_times_the_cosine_to_each_key(radius):
    memory, query = some_memory(radius=radius), pooled(some_features())
    expected = torch.tensor(addresses(memory, query, memory.keys))
    torch.testing.assert_close(memory.address(query), expected, atol=1e-6, rtol=1e-4)


def test_with_a_radius_of_1_no_address_is_sparse():
    """The largest ratio of two entries is e^2, whatever the keys: 112 slots then share nearly alike."""
    memory = some_memory(slots=112, radius=1.0)
    address = memory.address(pooled(some_features(50)))
    assert address.max() < exp(2) / (exp(2) + 111)
    assert some_memory(slots=112).address(pooled(some_features(50))).max() > 0.3


def test_the_losses_are_those_of_the_equations_term_by_term():
    memory, features, labels = some_memory(), some_features(), some_labels()
    query = pooled(features)
    p = addresses(memory, query, memory.keys)
    p_space = addresses(memory, features.flatten(1), memory.spatial.flatten(1))
    told = addresses(memory, memory.encoder(labels), memory.values)
    classifier = sparse = address = 0.0
    for image in range(3):
        values = [sum(share * slot for share, slot in zip(one[image], memory.values, strict=True)) for one in (told, p)]
        for value in values:
            for target, z in enumerate(memory.classifier(torch.cat([value, query[image]]))):
                chance = 1 / (1 + exp(-float(z.detach())))
                classifier -= log(chance if labels[image, target] else 1 - chance) / (3 * CLASSES)
        sparse += float((values[1] - values[0]).detach().square().sum()) / (3 * FEATURES)
        for found in (p_space, p):
            address += sum(t * log(t / f) for t, f in zip(told[image], found[image], strict=True)) / 3
    with torch.no_grad():
        losses = memory.losses(features, labels)
    assert float(losses.classifier) == pytest.approx(classifier, rel=1e-4)
    assert float(losses.sparse) == pytest.approx(sparse, rel=1e-4)
    assert float(losses.address) == pytest.approx(address, rel=1e-4)
    assert float(losses.total) == pytest.approx(classifier + sparse + address, rel=1e-4)


def test_no_gradient_reaches_the_classifier_that_is_explained():
    features = some_features().requires_grad_()
    some_memory().losses(features, some_labels()).total.backward()
    assert features.grad is None


def moved(loss, memory):
    memory.zero_grad(set_to_none=True)
    loss.backward()
    return {name for name, value in memory.named_parameters() if value.grad is not None and value.grad.any()}


def test_the_labels_address_is_a_target_and_learns_nothing_from_being_matched():
    memory = some_memory()
    assert moved(memory.losses(some_features(), some_labels()).address, memory) == {"keys", "spatial"}


def test_what_the_query_reads_moves_keys_and_not_values():
    memory, features, labels = some_memory(), some_features(), some_labels()
    query = pooled(features)
    values = memory.values.detach().clone().requires_grad_()
    similar = cosine_similarity(memory.encoder(labels)[:, None], values[None], dim=2)
    told = (memory.radius * similar).softmax(1) @ values
    read = (memory.address(query) @ memory.values).detach()
    (expected,) = torch.autograd.grad((read - told).square().mean(), values)
    sparse = memory.losses(features, labels).sparse
    found, keys = torch.autograd.grad(sparse, (memory.values, memory.keys))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
    assert keys.any()


@pytest.mark.parametrize("radius", [1.0, 16.0])
def test_the_gradient_in_closed_form_is_what_autograd_gives(radius):
    memory = some_memory(radius=radius)
    query = pooled(some_features(4)).requires_grad_()
    every = torch.arange(CLASSES)
    found = memory.query_gradient(query, every)
    for target in range(CLASSES):
        (expected,) = torch.autograd.grad(memory(query)[:, target].sum(), query, retain_graph=True)
        torch.testing.assert_close(found[:, target], expected, atol=1e-5, rtol=1e-4)
    chosen = torch.tensor([[2, 0], [1, 1], [0, 2], [2, 2]])
    theirs = memory.query_gradient(query, chosen)
    torch.testing.assert_close(theirs, found[torch.arange(4)[:, None], chosen])


def test_a_query_of_zeros_has_a_finite_gradient():
    assert some_memory().query_gradient(torch.zeros(1, FEATURES), torch.arange(CLASSES)).isfinite().all()


@pytest.mark.parametrize("cells", [CELLS, (2, 3, 2)])
def test_likeness_is_the_cosine_of_each_feature_over_cells(cells):
    memory, features = some_memory(cells=cells), some_features(cells=cells)
    features[1, 2] = 0
    found = memory.likeness(features)
    for image in range(3):
        for slot in range(5):
            for feature in range(FEATURES):
                pair = features[image, feature].flatten(), memory.spatial.detach()[slot, feature].flatten()
                expected = float(cosine_similarity(*pair, dim=0)) if pair[0].any() else 0.0
                assert float(found.detach()[image, slot, feature]) == pytest.approx(expected, abs=1e-5)


def printed_search(memory, query, noise):
    """Algorithm 1, one key after the other replaced by noise [N,F]; returns the drops [N,C]."""
    answer = memory(query[None])[0]
    found = []
    for slot in range(memory.slots):
        keys = memory.keys.detach().clone()
        keys[slot] = noise[slot]
        cosines = torch.stack([cosine_similarity(query, key, dim=0) for key in keys])
        value = (memory.radius * cosines).softmax(0) @ memory.values
        found.append(answer - memory.classifier(torch.cat([value, query])))
    return torch.stack(found).detach()


@pytest.mark.parametrize("radius", [1.0, 16.0])
def test_the_search_equals_the_printed_loop_under_the_same_noise(radius):
    memory, query = some_memory(radius=radius), pooled(some_features(4))
    noise = torch.randn(4, 5, 3, FEATURES, generator=torch.Generator().manual_seed(7))
    cosines = cosine_similarity(noise, query[:, None, None].expand_as(noise), dim=3)
    expected = torch.stack(
        [
            torch.stack([printed_search(memory, query[image], noise[image, :, draw]) for draw in range(3)])
            for image in range(4)
        ]
    )  # [B,D,N,C]
    torch.testing.assert_close(drops(memory, query, cosines), expected.mean(1), atol=1e-5, rtol=1e-3)
    found = find_slots(memory, query, cosines)
    assert torch.equal(found.slot, expected.mean(1).argmax(1))
    assert torch.equal(found.positive, expected.mean(1).amax(1) > 0)
    steady = (expected.argmax(2) == found.slot[:, None]).float().mean(1)
    torch.testing.assert_close(found.steady, steady)


def test_other_places_of_the_slots_change_nothing_but_their_numbers():
    memory, query = some_memory(slots=7), pooled(some_features(6))
    cosines = noise_cosines([str(image) for image in range(6)], FEATURES, 7)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    other = some_memory(slots=7)
    with torch.no_grad():
        for name in ("keys", "values", "spatial"):
            getattr(other, name).copy_(getattr(memory, name)[order])
    first, second = find_slots(memory, query, cosines), find_slots(other, query, cosines[:, order])
    assert torch.equal(order[second.slot], first.slot)
    torch.testing.assert_close(second.drop, first.drop, atol=1e-4, rtol=1e-3)


def test_cosines_are_drawn_as_those_of_gaussian_noise_are_distributed():
    drawn = noise_cosines(["one"], 4, 50, 100).flatten().numpy()
    random = np.random.default_rng(0)
    noise, query = random.standard_normal((5000, 4)), random.standard_normal(4)
    explicit = noise @ query / np.linalg.norm(noise, axis=1) / np.linalg.norm(query)
    assert kstest(drawn, explicit).pvalue > 0.01
    assert abs(drawn.std() - 1 / sqrt(4)) < 0.02


def test_the_noise_of_an_image_follows_from_its_name_alone():
    alone, among = noise_cosines(["b"], 9, 4), noise_cosines(["a", "b", "c"], 9, 4)
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])
    assert torch.equal(noise_cosines(["b"], 1, 2).abs(), torch.ones(1, 2, 16))


def test_a_memory_learns_to_tell_classes_and_gives_each_slots_of_its_own():
    """Class c is there where feature c is: a memory that learned it answers so and addresses other slots for each."""
    random = torch.Generator().manual_seed(3)
    labels = torch.eye(CLASSES)[torch.randint(CLASSES, (256,), generator=random)]
    features = 0.2 * torch.rand(256, FEATURES, *CELLS, generator=random)
    features[:, :CLASSES] += labels[:, :, None, None]
    memory = some_memory(slots=12)
    adam = torch.optim.Adam(memory.parameters(), 0.02)
    first = memory.losses(features, labels).total.item()
    for _ in range(150):
        adam.zero_grad()
        memory.losses(features, labels).total.backward()
        adam.step()
    query = pooled(features)
    assert memory.losses(features, labels).total.item() < first / 5
    assert (memory(query).argmax(1) == labels.argmax(1)).all()
    favourite = memory.address(query).argmax(1)
    assert len({int(favourite[labels[:, target] == 1].mode().values) for target in range(CLASSES)}) == CLASSES
    names = [str(image) for image in range(256)]
    found = find_slots(memory, query, noise_cosines(names, FEATURES, 12))
    assert found.positive.any(1).all()
    own = found.steady[labels.bool()]
    assert own.mean() > 2 / 12  # more than chance; in so few dimensions noise often looks like a key


def test_one_seed_gives_one_memory_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = some_memory(seed=1), some_memory(seed=1), some_memory(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.named_parameters():
        assert torch.equal(value, second.get_parameter(name))
        assert not torch.equal(value, other.get_parameter(name))


def test_features_of_another_layer_and_features_that_are_no_numbers_are_refused():
    memory = some_memory()
    with pytest.raises(ModelError, match=r"holds features of \[6, 3, 2\], and is given \[6, 2, 2\]"):
        memory.losses(some_features(cells=(2, 2)), some_labels())
    features = some_features()
    features[1, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match="not numbers"):
        memory.losses(features, some_labels())


@pytest.mark.parametrize(
    ("options", "told"), [({"slots": 0}, "slots"), ({"radius": 0.0}, "radius"), ({"radius": float("inf")}, "radius")]
)
def test_a_memory_without_slots_or_with_a_senseless_radius_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        some_memory(**options)


def test_the_spatial_part_is_what_a_memory_weighs():
    memory = some_memory()
    assert memory.spatial.nbytes == spatial_bytes(FEATURES, CELLS, 5)
