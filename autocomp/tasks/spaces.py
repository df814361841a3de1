"""Search-space files: what may be decided about a network, and for built-in networks how they are built."""

from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

from autocomp.errors import UserError, unknown_name
from autocomp.policy import Activation, Pattern
from autocomp.reading import parse_yaml, read_text, shortened
from autocomp.resources import data_folder, data_names
from autocomp.space import SpaceOptions

FOLDER = "search_spaces"
_MOST_BYTES = 100_000


class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MobileNetV2Block(_Strict):
    """One row of Sandler et al. 2018, table 2: expansion t, output channels c, repeats n, stride s."""

    expansion: int = Field(ge=1)
    channels: int = Field(ge=1)
    repeats: int = Field(ge=1)
    stride: int = Field(ge=1, le=2)


class MobileNetV2Spec(_Strict):
    """width: multiplier α of all channels. resolution: ρ, side of the square input in pixels."""

    width: float = Field(gt=0, le=4)
    resolution: int = Field(ge=16, le=512)
    stem_channels: int = Field(ge=1)
    stem_stride: int = Field(ge=1, le=2)
    head_channels: int = Field(ge=1)
    blocks: tuple[MobileNetV2Block, ...] = Field(min_length=1)


class SpaceFile(_Strict):
    """A search space: see `space.SpaceOptions`, of which a device is offered what it executes.

    network: how the built-in network is built, for spaces that come with one.
    """

    name: str
    description: str
    network: MobileNetV2Spec | None = None
    weight_bits: Annotated[tuple[int | None, ...], Field(min_length=1)]
    activations: Annotated[tuple[Activation, ...], Field(min_length=1)]
    weight_only: bool = False
    keep_ratios: Annotated[tuple[float, ...], Field(min_length=1)]
    sparsities: Annotated[tuple[float, ...], Field(min_length=1)]
    clusters: tuple[int, ...] = ()
    patterns: Annotated[tuple[Pattern, ...], Field(min_length=1)] = ("unstructured",)

    @property
    def options(self) -> SpaceOptions:
        return SpaceOptions(
            self.weight_bits, self.activations, self.keep_ratios, self.sparsities, weight_only=self.weight_only,
            clusters=self.clusters, patterns=self.patterns,
        )  # fmt: skip


def space_names() -> list[str]:
    """Names of the spaces that ship, sorted."""
    return data_names(FOLDER)


def load_space(name: str) -> SpaceFile:
    """The space of that name, or the one in a file if `name` ends in .yaml or .yml. UserError if there is none."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"search space {name} does not exist; expected a file or one of {', '.join(space_names())}")
    elif name in space_names():
        path = data_folder(FOLDER) / f"{name}.yaml"
    else:
        raise unknown_name("search space", name, space_names())
    document = parse_yaml(read_text(path, "search space", _MOST_BYTES), f"search space {path}")
    try:
        space = SpaceFile.model_validate(document)
        space.options  # noqa: B018  (its own checks name what is wrong)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        where = shortened(".".join(map(str, fault["loc"])), 80)
        raise UserError(f"search space {path}: {where}: {shortened(fault['msg'])}") from None
    except UserError as error:
        raise UserError(f"search space {path}: {error}") from None
    return space
