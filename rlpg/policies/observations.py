"""Observations: what an environment shows, packed into one array, and unpacked into features.

The only place that inspects an observation space. An observation travels through the collector,
the rollout and the files as ONE array (`pack`), whatever its space; what a network eats is made
from it (`features`) where it is needed: one-hot categories, images scaled to [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlpg.errors import SpaceError, counted
from rlpg.policies.spaces import (
    Path,
    Space,
    as_written,
    children,
    leaves,
    path_name,
    space_from_data,
    space_to_data,
    text_names,
    without_text,
)

MASK_KEY = "action_mask"
MIN_IMAGE_SIDE = 36  # smaller uint8 arrays are codes or registers, not pictures
MIN_BOARD_SIDE = 5  # smaller planes of bools are tables
_MAX_FEATURES = 2**22

Images = bool | Literal["auto"]


@dataclass(frozen=True)
class Image:
    """Where an image is among the features, and how its numbers are arranged."""

    features: slice
    shape: tuple[int, int, int]  # of a frame as it arrives: [H, W, C] or [C, H, W]
    channels_last: bool
    num_frames: int = 1  # K, one after the other

    @property
    def channels_first_shape(self) -> tuple[int, int, int]:
        """`(K C, H, W)`."""
        channels, *size = self.shape[-1:] + self.shape[:2] if self.channels_last else self.shape
        return (self.num_frames * channels, size[0], size[1])

    def channels_first(self, features: Tensor) -> Tensor:
        """`[B, K C, H, W]` from features `[B, F]`."""
        shape = (-1, self.num_frames, *self.shape)
        frames = features[:, self.features].reshape(shape)  # [B, K, H, W, C] or [B, K, C, H, W]
        frames = frames.movedim(-1, -3) if self.channels_last else frames
        return frames.reshape(-1, *self.channels_first_shape)


class Observations:
    """How to pack, unpack and describe the observations of one space.

    Packed form: a Box keeps its shape (uint8 stays uint8, everything else becomes float32),
    Discrete and MultiDiscrete become int64 counted from 0, MultiBinary becomes float32. Dict and
    Tuple, and everything that carries a mask from `info`, become one float32 vector `[D]`: the
    leaves in gymnasium's order, each flattened, categories as one number, then that mask.

    A uint8 Box of rank 2 or 3 can be an image, which a CNN is shown, and so can, of rank 3, planes
    of bools, and floats from 0 to one bound; a uint8 Box of rank 4 is a stack of frames, whose
    channels follow each other. The channel axis is the one that differs, where the other two are
    equal; else the first if that is shorter than the last, else the last. Every other Box is a
    vector, whose features are normalized. uint8 numbers are divided by the largest of their space
    in either case, floats where they are an image.
    """

    def __init__(self, space: Space, *, info_mask: int = 0, images: Images = "auto") -> None:
        """
        Args:
            space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these. Text in a
                Dict is left out.
            info_mask: length of the `info["action_mask"]` to append to every packed observation;
                0 for none. A top-level Dict entry "action_mask" is found without being named.
            images: which of the Boxes that can be images are: all, none, or ("auto") those with
                sides of at least 36 (bool: 5).

        Raises:
            SpaceError: the space has an unsupported part, no features, or too many; or it has
                nothing that could be an image, and `images` is True.
        """
        if images not in (True, False, "auto"):
            raise SpaceError(f"images: expected true, false or auto, got {images!r:.40}")
        text = text_names(space)
        self.without = f", without {', '.join(text)} (text)" if text else ""  # for a line
        seen = without_text(space)
        self.space = space = seen if leaves(seen, "observation") else space
        self.info_mask, self.images_setting = info_mask, images
        self._leaves: list[_Leaf] = []
        size = self.num_features = 0
        for path, part in leaves(space, "observation"):
            leaf = _Leaf(part, path, images, size, self.num_features)
            self._leaves.append(leaf)
            size, self.num_features = leaf.place.stop, leaf.features_place.stop
        if not 0 < self.num_features <= _MAX_FEATURES:
            raise SpaceError(
                f"observation: expected 1 to {_MAX_FEATURES} features, got {self.num_features}"
            )
        self._is_vector = children(space) is not None or info_mask > 0
        first = self._leaves[0]
        self.shape = (size + info_mask,) if self._is_vector else first.shape  # without batch
        self.numpy_dtype = np.dtype(np.float32) if self._is_vector else first.dtype
        self.torch_dtype = torch.from_numpy(np.empty(0, self.numpy_dtype)).dtype
        self.normalized = torch.cat(  # [F] bool: Box features that are not images
            [torch.full((leaf.num_features,), leaf.is_normalized) for leaf in self._leaves]
        )
        self.images = [leaf.image for leaf in self._leaves if leaf.image is not None]
        if images is True and not self.images:
            raise SpaceError(
                "images: expected a uint8 Box of rank 2 to 4, or one of rank 3 with bools or with "
                f"floats from 0 to one bound, got {space}; leave policy.images at auto"
            )
        masks = [leaf.place for leaf in self._leaves if leaf.is_mask]
        masks += [slice(size, size + info_mask)] if info_mask else []
        if len(masks) > 1:
            raise SpaceError(
                "action mask: expected one, got one in the observation and one in info"
            )
        self.mask_slice = masks[0] if masks else None  # of the vector

    @property
    def num_mask(self) -> int:
        """M, the number of entries of the action mask; 0 without one."""
        return 0 if self.mask_slice is None else self.mask_slice.stop - self.mask_slice.start

    @property
    def is_plain(self) -> bool:
        """Whether packed observations are their own features: a float Box of rank 1."""
        is_float = self._leaves[0].is_normalized and self.numpy_dtype == np.float32
        return is_float and not self._is_vector and len(self.shape) == 1

    # ---- numpy: what arrives

    def batch_size(self, obs: object) -> int | None:
        """B if `obs` is a batch (as gymnasium.vector returns it), None if it is one observation.

        Raises:
            SpaceError: its shape is that of neither.
        """
        leaf = self._leaves[0]
        shape: tuple[int, ...] = leaf.array(obs).shape
        if shape == leaf.shape:
            return None
        if shape[1:] != leaf.shape:
            raise leaf.unfit(f"shape {list(leaf.shape)}, or [B] in front of it", list(shape))
        return shape[0]

    def pack(
        self,
        obs: object,
        batch_size: int | None = None,
        mask: object = None,
        out: np.ndarray[Any, Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """Packed observations `[B, *O]`, or `[*O]` for one observation; a copy in any case.

        Args:
            obs: a batch of B as gymnasium.vector returns it, or with `batch_size=None` one.
            mask: `info["action_mask"]`, `[B, M]` or `[M]`; given if and only if `info_mask` is.
            out: where to put them, in the packed shape and dtype; a new array without it.

        Raises:
            SpaceError: a part is missing or has the wrong shape, kind of number, or a category
                that the space does not have. Finiteness is not checked here.
        """
        batch = () if batch_size is None else (batch_size,)
        if (mask is None) == (self.info_mask > 0):
            raise SpaceError(
                f"action mask: expected {self.info_mask or 'no'} entries beside the observation, "
                f'got {"none" if mask is None else "some"}; pass info["action_mask"] if it exists'
            )
        vector = np.empty((*batch, *self.shape), self.numpy_dtype) if out is None else out
        if not self._is_vector:
            self._leaves[0].pack(obs, vector)
            return vector
        for leaf in self._leaves:
            part = np.empty((*batch, *leaf.shape), leaf.dtype)
            leaf.pack(obs, part)
            vector[..., leaf.place] = part.reshape(*batch, leaf.size)  # [*B, D]
        if self.info_mask:
            array = np.asarray(mask)
            if array.shape != (*batch, self.info_mask) or array.dtype.kind not in "biuf":
                raise SpaceError(
                    f"action mask: expected numbers of shape {[*batch, self.info_mask]}, "
                    f"got {array.dtype.name} of shape {list(array.shape)}"
                )
            vector[..., self.mask_slice] = array != 0
        return vector

    # ---- torch: what a network eats

    def features(self, packed: Tensor) -> Tensor:
        """Features `[..., F]` float32 of packed observations `[..., *O]`, without the mask."""
        if not self._is_vector:
            rank = len(self.shape)
            if rank != 1:
                packed = packed.flatten(-rank) if rank else packed.unsqueeze(-1)  # [..., size]
            return self._leaves[0].features(packed)
        seen = [leaf for leaf in self._leaves if leaf.num_features]
        parts = [leaf.features(packed[..., leaf.place]) for leaf in seen]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def features_without(self, keys: Sequence[str]) -> Tensor | None:
        """Indices `[F']` of the features outside these entries of a Dict; None: all of them.

        Raises:
            SpaceError: the space has no such entry, or none would be left.
        """
        if not keys:
            return None
        owners = [str(leaf.path[0]) if leaf.path else "" for leaf in self._leaves]
        for key in keys:
            if key not in owners or not key:
                raise SpaceError(
                    f"critic_only: expected entries of the observation "
                    f"({', '.join(sorted({*owners} - {''})) or 'it is no Dict'}), got {key}"
                )
        is_seen = torch.tensor([owner not in keys for owner in owners])
        counts = torch.tensor([leaf.num_features for leaf in self._leaves])
        seen = is_seen.repeat_interleave(counts).nonzero()[:, 0]
        if not len(seen):
            raise SpaceError("critic_only: expected the policy to see something, got every entry")
        return seen

    def mask(self, packed: Tensor) -> Tensor | None:
        """`[..., M]` bool, the allowed actions of packed observations; None without a mask."""
        return None if self.mask_slice is None else packed[..., self.mask_slice] != 0

    # ---- data

    def describe(self) -> dict[str, Any]:
        """A JSON-able description, from which `from_description` makes the same object."""
        said = {} if self.images_setting == "auto" else {"images": self.images_setting}
        return {"space": space_to_data(self.space), "info_mask": self.info_mask, **said}

    @staticmethod
    def from_description(description: object) -> Observations:
        """Observations as `describe` wrote them; SpaceError for anything else."""
        data = as_written(description, _Data, "observations")
        space = space_from_data(data.space)
        return Observations(space, info_mask=data.info_mask, images=data.images)

    def describe_in_words(self) -> str:
        """One line: what the network is shown, and what decided that."""
        shapes = [image.channels_first_shape for image in self.images]
        parts = [f"image of {h} x {w} with {counted(c, 'channel')}" for c, h, w in shapes]
        num_normalized = int(self.normalized.sum())
        num_other = self.num_features - num_normalized - sum(map(math.prod, shapes))
        parts += [counted(num_normalized, "number")] if num_normalized else []
        parts += [counted(num_other, "0/1 feature")] if num_other else []
        line = f"observations: {', '.join(parts)}{self.without}"
        if any(leaf.could_be_image and leaf.image is None for leaf in self._leaves):
            return line + " (grids as numbers; policy.images = true shows them to a CNN)"
        return line + " (through a CNN; policy.images = false shows them as numbers)" * bool(shapes)


class _Data(msgspec.Struct, forbid_unknown_fields=True):
    """What a file says about observations."""

    space: Any
    info_mask: Annotated[int, msgspec.Meta(ge=0, le=_MAX_FEATURES)]
    images: Any = "auto"


class _Leaf:
    """One Box, Discrete, MultiDiscrete or MultiBinary somewhere in the space."""

    def __init__(
        self, space: Space, path: Path, images: Images, start: int, first_feature: int
    ) -> None:
        self.path = path
        self.shape: tuple[int, ...] = space.shape or ()
        self.size = self.num_features = math.prod(self.shape)  # numbers in the packed form
        self.place = slice(start, start + self.size)  # in a packed vector
        self.is_mask = path == (MASK_KEY,) and not isinstance(space, spaces.Discrete)
        self.is_normalized = self.could_be_image = False
        self.image: Image | None = None
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self._kinds = "biu"  # what numpy kinds may arrive
        self._scale = 1.0
        self._range: tuple[Any, Any] | None = None  # of what may arrive, where it is checked
        self._one_hot: Tensor | None = None  # [size] int64, first feature of each category
        if isinstance(space, spaces.Box):
            self._init_box(space, images, first_feature)
        elif isinstance(space, spaces.MultiBinary):
            self._range = (0, 1)
        elif isinstance(space, spaces.Discrete):
            self._init_categories(np.array(int(space.n)), np.array(int(space.start)))
        elif isinstance(space, spaces.MultiDiscrete):
            self._init_categories(space.nvec.astype(np.int64), space.start.astype(np.int64))
        if self.is_mask:
            self.num_features, self.is_normalized, self.image = 0, False, None
            self.could_be_image = False
        self.features_place = slice(first_feature, first_feature + self.num_features)

    def _init_box(self, space: spaces.Box[Any], images: Images, first_feature: int) -> None:
        self.is_normalized = True
        ranks: tuple[int, ...] = (3,)
        least, high = MIN_IMAGE_SIDE, float(space.high.max(initial=1))
        if space.dtype.kind == "f":
            self._kinds = "fiu"
            if space.low.any() or not (space.high == high).all() or np.isinf(high):
                return
        elif space.dtype == np.uint8:
            self._range, self.dtype, ranks = (0, 255), np.dtype(np.uint8), (2, 3, 4)
            self._scale = 1.0 / max(high, 1.0)
        elif space.dtype == np.bool_:
            least = MIN_BOARD_SIDE
        else:
            return
        if len(self.shape) not in ranks or not self.size:
            return
        self.could_be_image = True
        first, middle, last = (1, *self.shape) if len(self.shape) == 2 else self.shape[-3:]
        channels_last = len(self.shape) > 2 and (first >= last or first == middle != last)
        channels_last &= not middle == last != first
        sides = (first, middle) if channels_last else (middle, last)
        if min(sides) >= least if images == "auto" else images:
            place = slice(first_feature, first_feature + self.size)
            num_frames = self.size // (first * middle * last)
            self.image = Image(place, (first, middle, last), channels_last, num_frames)
            self.is_normalized, self._scale = False, 1.0 / high

    def _init_categories(self, nvec: np.ndarray, start: np.ndarray) -> None:
        self.dtype = np.dtype(np.int64)
        self._range = (start, start + nvec - 1)
        ends = np.cumsum(nvec.ravel())
        self._one_hot = torch.from_numpy(ends - nvec.ravel())
        self.num_features = int(ends[-1]) if self.size else 0

    def array(self, obs: object) -> np.ndarray:
        """This leaf's part of `obs`, as numpy has it."""
        expected = f"an array of shape {list(self.shape)}"
        for key in self.path:
            try:
                obs = obs[key]  # type: ignore[index]  # what cannot be indexed is caught
            except (KeyError, IndexError, TypeError) as error:
                entries = f" of {', '.join(map(repr, obs))}" if isinstance(obs, dict) else ""
                got = f"{type(obs).__name__}{entries or ' without entries'}"
                raise self.unfit(expected, f"no {key!r} in a {got}") from error
        try:
            return np.asarray(obs)
        except (TypeError, ValueError) as error:
            raise self.unfit(expected, error) from error

    def pack(self, obs: object, out: np.ndarray) -> None:
        """Checks this leaf's part of `obs` and copies it to `out` `[*B, *shape]`."""
        array = self.array(obs)
        if array.shape != out.shape:
            raise self.unfit(f"shape {list(out.shape)}", list(array.shape))
        if array.dtype == self.dtype and (self._range is None or self.dtype == np.uint8):
            out[...] = array
            return
        if array.dtype.kind not in self._kinds:
            names = {"fiu": "real numbers", "biu": "integers"}
            raise self.unfit(names[self._kinds], array.dtype.name)
        if self._range is not None:
            low, high = self._range
            outside = (array < low) | (array > high)
            if outside.any():
                at = np.argwhere(outside)[0].tolist()  # of a batch: the environment comes first
                raise self.unfit(f"values from {low} to {high}", f"{array[outside][0]} at {at}")
            if self._one_hot is not None:
                np.subtract(array, low, out=out, dtype=np.int64)
                return
        with np.errstate(over="ignore"):  # 1e39 becomes inf, which the collector reports
            out[...] = array

    def features(self, flat: Tensor) -> Tensor:
        """`[..., num_features]` of the packed, flattened leaf `[..., size]`."""
        if self._one_hot is not None:
            hot = flat.long() + self._one_hot.to(flat.device)  # [..., size]
            shape = (*flat.shape[:-1], self.num_features)
            return torch.zeros(shape, device=flat.device).scatter_(-1, hot, 1.0)
        values = flat.float()
        return values if self._scale == 1.0 else values * self._scale

    def unfit(self, expected: str, got: object) -> SpaceError:
        name = path_name("observation", self.path)
        return SpaceError(f"{name}: expected {expected}, got {got}; check the environment's space")
