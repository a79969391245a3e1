"""Observations: packing checks what arrives, features show it to a network."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.errors import SpaceError
from rlpg.policies import Observations


class TestPacking:
    def test_a_box_keeps_its_shape_as_float32(self):
        observations = Observations(spaces.Box(-1, 1, (2, 3), np.float64))
        obs = np.arange(24.0).reshape(4, 2, 3)
        packed = observations.pack(obs, 4)
        assert packed.dtype == observations.numpy_dtype == np.float32
        assert observations.torch_dtype == torch.float32
        np.testing.assert_array_equal(packed, obs)
        assert observations.pack(obs[0]).shape == observations.shape == (2, 3)

    @pytest.mark.parametrize(
        ("space", "obs"),
        [
            (spaces.Box(-1, 1, (2,)), np.zeros((3, 2), np.float32)),
            (spaces.Box(0, 255, (8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)),
            (spaces.Discrete(4), np.zeros(3, np.int64)),
            (spaces.MultiBinary(2), np.zeros((3, 2), np.int8)),
            (spaces.Tuple((spaces.Box(-1, 1, (2,)),)), (np.zeros((3, 2), np.float32),)),
        ],
    )
    def test_what_is_packed_is_a_copy(self, space, obs):
        # An environment that reuses its buffer must not corrupt what was collected.
        packed = Observations(space).pack(obs, 3)
        (obs[0] if isinstance(obs, tuple) else obs)[:] = 1
        assert (packed == 0).all()

    def test_images_stay_bytes(self):
        observations = Observations(spaces.Box(0, 255, (8, 8, 3), np.uint8))
        packed = observations.pack(np.full((2, 8, 8, 3), 255, np.uint8), 2)
        assert packed.dtype == np.uint8
        assert observations.torch_dtype == torch.uint8

    def test_categories_count_from_zero(self):
        observations = Observations(spaces.Discrete(3, start=-1))
        assert observations.pack(np.array([-1, 0, 1]), 3).tolist() == [0, 1, 2]
        assert observations.pack(-1).shape == ()
        assert observations.pack(np.int32(1)) == 2
        multi = Observations(spaces.MultiDiscrete([[2, 3]], start=[[5, -5]]))
        assert multi.pack(np.array([[[6, -5]]]), 1).tolist() == [[[1, 0]]]

    def test_composite_observations_become_one_vector_in_gymnasiums_order(self):
        space = spaces.Dict(
            {
                "b": spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2))),
                "a": spaces.Box(0, 1, (2, 2)),
            }
        )
        observations = Observations(space)
        obs = {"a": np.array([[1, 2], [3, 4.0]]), "b": (3, np.array([0, 1], np.int8))}
        assert observations.pack(obs).tolist() == [1, 2, 3, 4, 2, 0, 1]
        batch = {"a": obs["a"][None], "b": (np.array([3]), np.array([[0, 1]], np.int8))}
        assert observations.pack(batch, 1).tolist() == [[1, 2, 3, 4, 2, 0, 1]]

    def test_blackjack(self):
        space = spaces.Tuple((spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)))
        observations = Observations(space)
        assert observations.pack((13, 10, False)).tolist() == [13, 10, 0]
        features = observations.features(torch.tensor([13.0, 10.0, 0.0]))
        assert features.nonzero()[:, 0].tolist() == [13, 32 + 10, 43]

    def test_overflowing_numbers_become_infinite_for_the_collector_to_report(self):
        packed = Observations(spaces.Box(-np.inf, np.inf, (1,))).pack(np.array([1e39]))
        assert np.isinf(packed).all()

    @pytest.mark.parametrize(
        ("space", "obs", "message"),
        [
            (spaces.Box(-1, 1, (3,)), np.zeros((2, 1)), r"expected shape \[2, 3\], got \[2, 1\]"),
            (spaces.Box(-1, 1, (3,)), np.zeros((3, 3)), r"expected shape \[2, 3\], got \[3, 3\]"),
            (spaces.Box(-1, 1, (3,)), None, r"expected shape \[2, 3\], got \[\]"),
            (spaces.Box(-1, 1, (1,)), [["a"], ["b"]], "expected real numbers, got str"),
            (spaces.Box(-1, 1, (1,)), [[None], [1.0]], "expected real numbers, got object"),
            (spaces.Box(-1, 1, (1,)), [[1j], [1.0]], "expected real numbers, got complex128"),
            (spaces.Box(-1, 1, (2,)), [[1.0], [1.0, 2.0]], "inhomogeneous"),
            (spaces.Box(0, 9, (1,), np.int64), np.zeros((2, 1)), "expected integers, got float64"),
            (spaces.Box(0, 255, (1,), np.uint8), np.full((2, 1), 256), "from 0 to 255, got 256 at"),
            (spaces.Box(0, 255, (1,), np.uint8), np.zeros((2, 1)), "integers, got float64"),
            (spaces.Discrete(3), np.array([0.0, 1.0]), "expected integers, got float64"),
            (spaces.Discrete(3), np.array([0, 3]), "expected values from 0 to 2, got 3"),
            (spaces.Discrete(3, start=2), np.array([1, 2]), "values from 2 to 4, got 1"),
            (spaces.MultiDiscrete([2, 3]), np.array([[1, 2], [2, 0]]), "got 2"),
            (spaces.MultiBinary(1), np.array([[0], [2]], np.int8), "from 0 to 1, got 2"),
            (
                spaces.Dict({"a": spaces.Discrete(2)}),
                {"b": np.zeros(2)},
                r"observation\['a'\]: .*, got no 'a' in a dict of 'b'; check",
            ),
            (spaces.Dict({"a": spaces.Discrete(2)}), np.zeros(2), r"got no 'a' in a ndarray"),
            (spaces.Dict({"a": spaces.Discrete(2)}), None, r"got no 'a' in a NoneType"),
            (spaces.Tuple((spaces.Discrete(2),)), (), r"observation\[0\]: .*, got no 0 in a tuple"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, space, obs, message):
        with pytest.raises(SpaceError, match=message):
            Observations(space).pack(obs, 2)

    @pytest.mark.parametrize("obs", [[0, 255], np.array([0, 255]), np.array([0, 255], np.int16)])
    def test_integers_of_another_type_are_bytes_where_they_fit(self, obs):
        packed = Observations(spaces.Box(0, 255, (2,), np.uint8)).pack(obs)
        assert packed.dtype == np.uint8
        assert packed.tolist() == [0, 255]

    def test_one_or_a_batch_is_told_by_the_shape(self):
        observations = Observations(spaces.Box(-1, 1, (3,)))
        assert observations.batch_size(np.zeros(3)) is None
        assert observations.batch_size(np.zeros((3, 3))) == 3
        with pytest.raises(SpaceError, match=r"shape \[3\], or \[B\] in front of it, got \[4\]"):
            observations.batch_size(np.zeros(4))
        pair = Observations(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))))
        assert pair.batch_size((0, 1)) is None
        assert pair.batch_size((np.zeros(5, int), np.zeros(5, int))) == 5


class TestMasks:
    def test_a_mask_from_info_is_carried_behind_the_observation(self):
        observations = Observations(spaces.Box(-1, 1, (2,)), info_mask=3)
        obs, mask = np.ones((2, 2)), np.array([[1, 0, 1], [0, 1, 1]], np.int8)
        packed = torch.from_numpy(observations.pack(obs, 2, mask))
        assert observations.shape == (5,)
        assert observations.num_mask == 3
        assert observations.mask(packed).tolist() == mask.astype(bool).tolist()
        assert observations.features(packed).tolist() == obs.tolist()
        assert observations.num_features == 2

    def test_an_entry_called_action_mask_is_the_mask_and_no_feature(self):
        space = spaces.Dict(
            {
                "action_mask": spaces.Box(0, 1, (3,), np.int8),
                "observation": spaces.Discrete(2),
                "zeal": spaces.Box(-1, 1, (1,)),
            }
        )
        observations = Observations(space)
        obs = {"action_mask": np.array([1, 0, 1], np.int8), "observation": 1, "zeal": [0.5]}
        packed = torch.from_numpy(observations.pack(obs))
        assert observations.mask(packed).tolist() == [True, False, True]
        assert observations.features(packed).tolist() == [0, 1, 0.5]
        assert observations.normalized.tolist() == [False, False, True]

    def test_deeper_entries_of_that_name_are_features(self):
        inner = spaces.Dict({"action_mask": spaces.MultiBinary(2)})
        observations = Observations(spaces.Dict({"x": inner}))
        assert observations.mask_slice is None
        assert observations.num_features == 2

    @pytest.mark.parametrize("mask", [None, np.ones(2), np.ones((1, 3)), ["a", "b", "c"]])
    def test_a_missing_or_ill_shaped_mask_is_refused(self, mask):
        with pytest.raises(SpaceError, match="action mask: expected"):
            Observations(spaces.Discrete(2), info_mask=3).pack(0, mask=mask)

    def test_an_unexpected_mask_is_refused(self):
        with pytest.raises(SpaceError, match="expected no entries"):
            Observations(spaces.Discrete(2)).pack(0, mask=np.ones(2))

    def test_two_masks_are_refused(self):
        with pytest.raises(SpaceError, match="one in the observation and one in info"):
            Observations(
                spaces.Dict({"action_mask": spaces.MultiBinary(2), "x": spaces.Discrete(2)}),
                info_mask=2,
            )


class TestFeatures:
    def test_categories_become_one_hot(self):
        observations = Observations(spaces.MultiDiscrete([[2, 3], [1, 2]]))
        packed = torch.tensor([[1, 2], [0, 0]])
        assert observations.features(packed).tolist() == [0, 1, 0, 0, 1, 1, 1, 0]
        assert observations.features(packed.expand(4, 5, 2, 2)).shape == (4, 5, 8)
        single = Observations(spaces.Discrete(3))
        assert single.features(torch.tensor(2)).tolist() == [0, 0, 1]
        assert single.features(torch.tensor([[0, 1]])).shape == (1, 2, 3)

    def test_bytes_are_scaled_by_their_largest_value(self):
        image = Observations(spaces.Box(0, 255, (8, 8), np.uint8), images=True)
        packed = torch.full((2, 8, 8), 51, dtype=torch.uint8)
        torch.testing.assert_close(image.features(packed), torch.full((2, 64), 0.2))
        board = Observations(spaces.Box(0, 4, (3, 3), np.uint8))
        assert board.features(torch.full((3, 3), 4, dtype=torch.uint8)).tolist() == [1.0] * 9

    @pytest.mark.parametrize(
        ("shape", "channels_first"),
        [
            ((84, 84, 4), (4, 84, 84)),
            ((4, 84, 84), (4, 84, 84)),
            ((8, 9), (1, 8, 9)),
            ((8, 9, 1), (1, 8, 9)),
            ((1, 8, 9), (1, 8, 9)),
            ((7, 6, 6), (7, 6, 6)),
            ((6, 7, 6), (6, 6, 7)),
            ((8, 8, 111), (111, 8, 8)),  # the longest axis, and yet that of the channels
            ((4, 8, 9, 3), (12, 8, 9)),
            ((4, 3, 8, 9), (12, 8, 9)),
        ],
    )
    def test_images_are_found_and_turned(self, shape, channels_first):
        observations = Observations(spaces.Box(0, 255, shape, np.uint8), images=True)
        (image,) = observations.images
        assert image.channels_first_shape == channels_first
        picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        features = observations.features(torch.from_numpy(picture)[None])
        turned = image.channels_first(features)
        assert turned.shape == (1, *channels_first)
        expected = picture.reshape(channels_first)
        if len(shape) > 2 and channels_first[-2:] != shape[-2:]:
            expected = np.moveaxis(picture, -1, -3).reshape(channels_first)
        torch.testing.assert_close(turned[0], torch.from_numpy(expected) / 255.0)
        assert not observations.normalized.any()

    def test_planes_of_bools_are_boards(self):
        """MinAtar's planes went through the MLP, each cell of each normalized by itself."""
        space = spaces.Box(0, 1, (10, 10, 4), np.bool_)
        observations = Observations(space)
        assert [image.channels_first_shape for image in observations.images] == [(4, 10, 10)]
        assert not observations.normalized.any()
        assert observations.describe_in_words().startswith(
            "observations: image of 10 x 10 with 4 channels (through a CNN;"
        )
        space.seed(0)
        board = space.sample()
        packed = torch.from_numpy(observations.pack(board))
        turned = observations.images[0].channels_first(observations.features(packed)[None])
        torch.testing.assert_close(turned[0], torch.from_numpy(board.transpose(2, 0, 1)).float())

    @pytest.mark.parametrize(
        ("low", "high", "is_image"),
        [(0, 1, True), (0, 255, True), (-1, 1, False), (0, np.inf, False), (-np.inf, 0, False)],
    )
    def test_floats_from_0_to_one_bound_are_images(self, low, high, is_image):
        """They went through the MLP, each pixel normalized by itself."""
        space = spaces.Box(low, high, (3, 40, 50), np.float32)
        observations = Observations(space)
        assert bool(observations.images) is is_image
        assert bool(observations.normalized.all()) is not is_image
        space.seed(0)
        frame = space.sample()
        features = observations.features(torch.from_numpy(observations.pack(frame)))
        expected = torch.from_numpy(frame).flatten() / (high if is_image else 1)
        torch.testing.assert_close(features, expected)
        assert Observations(space, images=False).images == []

    def test_of_floats_with_several_bounds_no_image_is_made(self):
        high = np.ones((3, 40, 50), np.float32)
        high[1] = 2.0
        assert Observations(spaces.Box(np.zeros_like(high), high)).images == []

    def test_codes_in_a_small_uint8_box_were_taken_for_an_image(self):
        """MiniGrid's codes 0..10, divided by 255, reached a CNN almost as zeros."""
        observations = Observations(spaces.Box(0, 255, (7, 7, 3), np.uint8))
        codes = torch.arange(147, dtype=torch.uint8).reshape(7, 7, 3) % 11
        assert observations.images == []
        assert observations.normalized.all()
        torch.testing.assert_close(observations.features(codes), codes.flatten() / 255.0)

    @pytest.mark.parametrize("images", ["auto", True, False])
    @pytest.mark.parametrize(
        ("shape", "dtype", "auto", "possible"),
        [
            ((36, 36), np.uint8, True, True),
            ((36, 36, 3), np.uint8, True, True),
            ((1, 36, 40), np.uint8, True, True),
            ((35, 84), np.uint8, False, True),
            ((84, 35, 1), np.uint8, False, True),
            ((7, 7, 3), np.uint8, False, True),
            ((128,), np.uint8, False, False),
            ((2, 40, 40, 3), np.uint8, True, True),  # FrameStackObservation
            ((2, 7, 7, 3), np.uint8, False, True),
            ((2, 2, 40, 40, 3), np.uint8, False, False),
            ((10, 10, 4), np.bool_, True, True),
            ((4, 5, 6), np.bool_, True, True),
            ((4, 10, 4), np.bool_, False, True),
            ((10, 10), np.bool_, False, False),
            ((2, 10, 10, 4), np.bool_, False, False),
            ((84, 84, 3), np.float32, True, True),
            ((4, 36, 40), np.float64, True, True),
            ((7, 7, 3), np.float32, False, True),
            ((84, 84), np.float32, False, False),
            ((4, 84, 84, 3), np.float32, False, False),
            ((84, 84), np.int16, False, False),
        ],
    )
    def test_what_is_an_image(self, shape, dtype, auto, possible, images):
        space = spaces.Box(0, 1 if dtype == np.bool_ else 255, shape, dtype)
        if images is True and not possible:
            with pytest.raises(SpaceError, match="images: expected a uint8 Box of rank 2 to 4"):
                Observations(space, images=True)
            return
        expected = auto if images == "auto" else images
        observations = Observations(space, images=images)
        assert bool(observations.images) is expected
        assert bool(observations.normalized.all()) is not expected
        again = Observations.from_description(json.loads(json.dumps(observations.describe())))
        assert again.images == observations.images
        words = observations.describe_in_words()
        assert ("image of" in words) is expected
        assert ("policy.images = true" in words) is (possible and not expected)

    def test_what_was_decided_is_said_in_one_line(self):
        space = spaces.Dict(
            {
                "board": spaces.Box(0, 9, (7, 7), np.uint8),
                "camera": spaces.Box(0, 255, (40, 50, 3), np.uint8),
                "speed": spaces.Box(-1, 1, (1,)),
                "gear": spaces.Discrete(5),
            }
        )
        assert Observations(space).describe_in_words() == (
            "observations: image of 40 x 50 with 3 channels, 50 numbers, 5 0/1 features (grids "
            "as numbers; policy.images = true shows them to a CNN)"
        )
        plain = Observations(spaces.Box(-1, 1, (4,))).describe_in_words()
        assert plain == "observations: 4 numbers"

    @pytest.mark.parametrize("images", ["yes", None, 2])
    def test_another_word_for_images_is_refused(self, images):
        space = spaces.Box(0, 255, (40, 40), np.uint8)
        with pytest.raises(SpaceError, match="images: expected true, false or auto"):
            Observations(space, images=images)
        description = {**Observations(space).describe(), "images": images}
        with pytest.raises(SpaceError, match="images: expected true, false or auto"):
            Observations.from_description(description)

    def test_a_scalar_box_is_one_feature(self):
        observations = Observations(spaces.Box(-1, 1, ()))
        assert observations.features(torch.tensor(0.5)).tolist() == [0.5]
        assert observations.features(torch.zeros(3, 4)).shape == (3, 4, 1)


class TestRefusals:
    @pytest.mark.parametrize(
        "space",
        [
            spaces.Text(3),
            spaces.Graph(spaces.Box(0, 1, (2,)), None),
            spaces.Sequence(spaces.Discrete(2)),
            spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
        ],
        ids=lambda space: type(space).__name__,
    )
    def test_unsupported_spaces_are_refused_with_what_is_supported(self, space):
        for refused in (space, spaces.Dict({"x": space}), spaces.Tuple((space,))):
            with pytest.raises(SpaceError, match="expected Box, Discrete, MultiDiscrete, MultiBin"):
                Observations(refused)

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Dict(),
            spaces.Tuple(()),
            spaces.Box(0, 1, (0,)),
            spaces.Discrete(10**9),
            spaces.Dict({"action_mask": spaces.MultiBinary(3)}),
        ],
        ids=str,
    )
    def test_no_features_or_too_many_are_refused(self, space):
        with pytest.raises(SpaceError, match=r"expected 1 to .* features"):
            Observations(space)


def test_description_round_trip():
    observations = Observations(spaces.Box(-np.inf, 1, (2,)), info_mask=4)
    again = Observations.from_description(json.loads(json.dumps(observations.describe())))
    assert again.space == observations.space
    assert again.shape == observations.shape
    assert again.mask_slice == observations.mask_slice


@pytest.mark.parametrize(
    "change", [{"info_mask": -1}, {"info_mask": "4"}, {"info_mask": 10**12}, {"more": 1}]
)
def test_damaged_descriptions_are_refused(change):
    description = {**Observations(spaces.Discrete(2)).describe(), **change}
    with pytest.raises(SpaceError, match="expected"):
        Observations.from_description(description)
    with pytest.raises(SpaceError, match="expected"):
        Observations.from_description([])
