"""Connected components of pixel masks and of graphs, against scipy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tasks.measures.components import label, roots

EIGHT = np.ones((3, 3))


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=7)))
def test_labels_are_scipys_in_every_mask_of_a_batch(masks):
    expected = [ndimage.label(mask, EIGHT)[0] for mask in masks]
    assert np.array_equal(label(torch.from_numpy(masks)), np.reshape(expected, masks.shape))


@pytest.mark.parametrize("share", [0.1, 0.35, 0.45, 0.6])
def test_labels_of_crowded_masks_are_scipys_too(share, device):
    masks = np.random.default_rng(0).random((8, 40, 50)) < share
    expected = np.stack([ndimage.label(mask, EIGHT)[0] for mask in masks])
    assert np.array_equal(label(torch.from_numpy(masks).to(device)).cpu(), expected)


@given(
    st.integers(1, 40).flatmap(
        lambda nodes: st.tuples(st.just(nodes), st.lists(st.tuples(*[st.integers(0, nodes - 1)] * 2)))
    )
)
def test_a_node_and_its_root_lie_in_one_component_and_the_root_is_its_lowest_node(graph):
    nodes, edges = graph
    left, right = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    ones = np.ones(len(edges))
    _, expected = connected_components(coo_array((ones, (left.numpy(), right.numpy())), (nodes, nodes)), directed=False)
    lowest = [np.flatnonzero(expected == component)[0] for component in expected]
    assert roots(nodes, left, right).tolist() == lowest
