"""Macro layouts: what stands around the searchable blocks, and the shape of each of them.

``mobile`` is the layout of ProxylessNAS and of the released AutoSpace network (proven by the
file); ``small`` and ``tiny`` are this project's own, for 32×32 and 16×16 images on a CPU.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from devices.errors import InvalidInputError, UsageError

__all__ = ["SKELETONS", "BlockShape", "Skeleton", "Stage", "find_skeleton"]


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks of one width; the stride is in the first of them."""

    width: int
    blocks: int
    stride: int


@dataclass(frozen=True)
class BlockShape:
    """Where a searchable block stands.

    Attributes:
        in_channels: channels that enter it.
        out_channels: channels that leave it.
        stride: 1 or 2.
        in_size: height and width that enter it, in pixels.
    """

    in_channels: int
    out_channels: int
    stride: int
    in_size: int

    @property
    def out_size(self) -> int:
        """Height and width that leave it, in pixels."""
        return -(-self.in_size // self.stride)

    @property
    def has_shortcut(self) -> bool:
        """Whether input and output have one shape, so that an outer shortcut exists."""
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True)
class Skeleton:
    """A macro layout with its input and its classes.

    Attributes:
        name: for output only; two skeletons are equal by their numbers and name.
        resolution: input height and width, in pixels.
        in_channels: input channels.
        num_classes: outputs of the classifier.
        stem_width: channels of the first 3×3 convolution.
        stem_stride: its stride.
        first_width: channels of the first, fixed MBConv3 block with expansion 1; 0 leaves it out.
        stages: the searchable blocks.
        head_width: channels of the last 1×1 convolution.
        width_mult: multiplies every width, rounded to a multiple of 8.
        sharing: consecutive blocks that share one population of cells: 2 in the release; 1 in
            ``small``, where a stage's first block and its second have little in common.
    """

    name: str
    resolution: int
    in_channels: int
    num_classes: int
    stem_width: int
    stem_stride: int
    first_width: int
    stages: tuple[Stage, ...]
    head_width: int
    width_mult: float = 1.0
    sharing: int = 2

    def __post_init__(self) -> None:
        for field, low, high in (
            ("resolution", 4, 4096),
            ("in_channels", 1, 1024),
            ("num_classes", 2, 1_000_000),
            ("stem_width", 1, 4096),
            ("stem_stride", 1, 2),
            ("first_width", 0, 4096),
            ("head_width", 1, 16384),
            ("sharing", 1, 1000),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise InvalidInputError(f"skeleton: {field} is {value}; must be {low} to {high}")
        if not 0.05 <= self.width_mult <= 20:
            raise InvalidInputError(
                f"skeleton: width_mult is {self.width_mult}; must be 0.05 to 20"
            )
        if not self.stages:
            raise InvalidInputError("skeleton: no stages; give at least one")
        for stage in self.stages:
            if stage.width < 1 or not 1 <= stage.blocks <= 100 or stage.stride not in (1, 2):
                raise InvalidInputError(
                    f"skeleton: stage {stage}; width at least 1, blocks 1 to 100, stride 1 or 2"
                )

    def scaled(self, width: int) -> int:
        """A width times ``width_mult``, rounded to a multiple of 8, never below 90 %."""
        if self.width_mult == 1.0:
            return width
        target = width * self.width_mult
        rounded = max(8, int(target + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * target else rounded

    @property
    def stem_size(self) -> int:
        """Height and width after the stem."""
        return -(-self.resolution // self.stem_stride)

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """The searchable blocks, in order."""
        shapes: list[BlockShape] = []
        channels, size = self.scaled(self.first_width or self.stem_width), self.stem_size
        for stage in self.stages:
            for index in range(stage.blocks):
                shape = BlockShape(
                    channels, self.scaled(stage.width), stage.stride if index == 0 else 1, size
                )
                shapes.append(shape)
                channels, size = shape.out_channels, shape.out_size
        return tuple(shapes)

    @property
    def num_layers(self) -> int:
        """Populations of cells: blocks divided by ``sharing``, rounded up."""
        return -(-len(self.blocks) // self.sharing)

    def layer_of(self, block: int) -> int:
        """The population that a block (counted from 0) takes its cells from."""
        return block // self.sharing

    def for_data(self, *, resolution: int, in_channels: int, num_classes: int) -> Skeleton:
        """The same layout on other data: a proxy for training, or the target itself."""
        return replace(
            self, resolution=resolution, in_channels=in_channels, num_classes=num_classes
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        document = {field: getattr(self, field) for field in self.__dataclass_fields__}
        document["stages"] = [[s.width, s.blocks, s.stride] for s in self.stages]
        return document

    @staticmethod
    def from_json(document: object) -> Skeleton:
        """Reads what `to_json` wrote.

        Raises:
            InvalidInputError: a field missing, unknown or of the wrong type.
        """
        if not isinstance(document, dict):
            raise InvalidInputError("skeleton: must be a JSON object")
        fields = Skeleton.__dataclass_fields__
        if unknown := sorted(set(document) - set(fields)):
            near = difflib.get_close_matches(unknown[0], fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise InvalidInputError(f"skeleton: unknown field {unknown[0]!r}; {hint}")
        if missing := [name for name in fields if name not in document]:
            raise InvalidInputError(f"skeleton: field {missing[0]!r} is missing")
        values = dict(document)
        stages = values.pop("stages")
        if not isinstance(stages, list) or not all(
            isinstance(stage, list) and len(stage) == 3 and all(type(n) is int for n in stage)
            for stage in stages
        ):
            raise InvalidInputError("skeleton: stages must be a list of [width, blocks, stride]")
        for name, value in values.items():
            if name == "name":
                good = isinstance(value, str)
            elif name == "width_mult":
                good = type(value) in (int, float)
            else:
                good = type(value) is int
            if not good:
                raise InvalidInputError(f"skeleton: {name} is {value!r}; wrong type")
        return Skeleton(**values, stages=tuple(Stage(*stage) for stage in stages))


SKELETONS: dict[str, Skeleton] = {
    skeleton.name: skeleton
    for skeleton in (
        Skeleton(
            name="mobile",
            resolution=224,
            in_channels=3,
            num_classes=1000,
            stem_width=32,
            stem_stride=2,
            first_width=16,
            stages=(
                Stage(24, 4, 2),
                Stage(40, 4, 2),
                Stage(80, 4, 2),
                Stage(96, 4, 1),
                Stage(192, 4, 2),
                Stage(320, 1, 1),
            ),
            head_width=1280,
        ),
        Skeleton(
            name="small",
            resolution=32,
            in_channels=1,
            num_classes=10,
            stem_width=16,
            stem_stride=2,
            first_width=0,
            stages=(Stage(16, 2, 2), Stage(32, 4, 2), Stage(64, 4, 2)),
            head_width=256,
            sharing=1,
        ),
        Skeleton(
            name="tiny",
            resolution=16,
            in_channels=1,
            num_classes=10,
            stem_width=16,
            stem_stride=1,
            first_width=0,
            stages=(Stage(24, 2, 2), Stage(40, 4, 2)),
            head_width=128,
        ),
    )
}
"""The named layouts, by name."""


def find_skeleton(name: str) -> Skeleton:
    """A named layout.

    Raises:
        UsageError: no such name; near ones are offered.
    """
    if name in SKELETONS:
        return SKELETONS[name]
    near = difflib.get_close_matches(name, SKELETONS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SKELETONS)}"
    raise UsageError(f"--skeleton {name!r}: unknown; {hint}")
