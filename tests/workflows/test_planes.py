import numpy as np

from workflows.planes import highest, three_planes


def test_the_planes_lie_side_by_side_through_the_voxel_with_the_head_up():
    """Each voxel of a volume of 3 x 4 x 5 tells where it lies: 100 z + 10 y + x."""
    z, y, x = np.indices((3, 4, 5))
    picture = three_planes(100 * z + 10 * y + x, (1, 2, 3), -1)
    assert picture.shape == (4, 5 + 2 + 5 + 2 + 4)
    assert picture[0, :5].tolist() == [100, 101, 102, 103, 104]  # axial: the front is at the top
    assert picture[:, 7:12].tolist()[:3] == [[220, 221, 222, 223, 224], [120, 121, 122, 123, 124], [20, 21, 22, 23, 24]]
    assert picture[0, 14:].tolist() == [203, 213, 223, 233]  # sagittal: the head is at the top, the front at the left
    assert (picture[3, 5:] == -1).all()
    assert (picture[:, [5, 6, 12, 13]] == -1).all()


def test_a_picture_with_colours_has_the_same_places():
    volume = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    picture = three_planes(volume, (0, 1, 2), 0)
    assert picture.shape == (3, 4 + 2 + 4 + 2 + 3, 3)
    np.testing.assert_array_equal(picture[:, :4], volume[0])


def test_a_low_plane_lies_in_the_middle_of_the_picture():
    picture = three_planes(np.ones((2, 6, 3)), (0, 0, 0), 0)
    assert picture[:, 5].tolist() == [0, 0, 1, 1, 0, 0]


def test_the_highest_voxel_is_the_first_of_the_highest():
    saliency = np.zeros((2, 3, 4))
    saliency[1, 2, 0] = saliency[1, 2, 3] = 5
    assert highest(saliency) == (1, 2, 0)
