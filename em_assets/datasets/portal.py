"""A tomogram of the CryoET Data Portal in a spec: how it is found again whenever its address is needed, and its points.

Keys in the portal's bucket change (they did once, with ids and folders); what a spec names are the portal's own words.
The source's address beside them is the one that the portal's API gave when the spec was written. `sources/cryoet.py`
asks for the present one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from em_assets.datasets.fields import AtKey, Line, SpecModel, VoxelSizeNm, WebAddress, web_address

PortalId = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
PointFormat = Literal[
    "ndjson",
    "csv",
    "csv_with_header",
    "tsv",
    "mod",
    "relion3_star",
    "relion4_star",
    "tomoman_relion_star",
    "stopgap_star",
    "copick",
    "tardis",
]
"""As the portal's ingestion configuration names them; `ndjson` is what it serves."""


def _run_name(value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise ValueError("the name of a run has no / in it, as in TS_026")
    return value


class PortalTomogram(SpecModel):
    """Which tomogram of the CryoET Data Portal the source is. Exactly one must fit, else the run stops."""

    api: WebAddress
    """The portal's GraphQL, asked for the present addresses before anything is fetched."""
    dataset: PortalId
    """The portal's number of the dataset: 10000."""
    run: Annotated[Line, AfterValidator(_run_name)]
    """Name of the run: TS_026."""
    tomogram: PortalId | None = None
    """The portal's id of the tomogram. The portal may give it another one: absent, the only one that fits is taken."""
    voxel_spacing_angstrom: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Of the tomogram at full size, as the portal states it; absent: any."""
    processing: Literal["raw", "denoised", "filtered"] | None = None
    """What was done to the tomogram; absent: any."""
    reconstruction_method: Line | None = None
    """Such as WBP, SIRT; absent: any."""
    deposition: PortalId | None = None
    """Who deposited it, by the portal's number: others may have reconstructed the same run; absent: any."""

    def choice(self) -> dict[str, Any]:
        """What is chosen, whoever serves it."""
        return self.model_dump(exclude={"api"}, exclude_none=True)


class PointSet(SpecModel):
    """Points of an annotation, kept beside the volume: raw below `documents/`, and as `points/<name>.parquet`."""

    title: Line | None = None
    """One line about them."""
    url: Annotated[str, Field(pattern=r"^https?://[^\s#]+$"), AfterValidator(web_address)]
    """Of the file that lists them."""
    format: PointFormat = "ndjson"
    """How the file is written."""
    voxel_size_nm: VoxelSizeNm
    """(z, y, x) of the voxels that locations are counted in: those of the tomogram at full size."""
    counted_from: Literal["centre", "corner"] = "centre"
    """What of voxel i the location i is: its middle (taken where nobody says), or the corner where it begins."""
    annotation: PortalId | None = None
    """Of a portal's run: the number of the annotation's folder, as in Annotations/100/; absent: of the tomogram's
    annotations the only one whose file is of this object, as the file's name has it."""
    columns: Annotated[str, Field(pattern=r"^(xyz|xzy|yxz|yzx|zxy|zyx)$")] | None = None
    """Of csv: which coordinate each column is; absent: xyz."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Of csv: what stands between columns; absent: a comma."""
    order: Annotated[str, Field(pattern=r"^(xyz|xzy|yxz|yzx|zxy|zyx)$")] | None = None
    """Which axes the file calls x, y and z; absent: xyz."""
    binning: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Units of the file per voxel of the tomogram at full size; absent: 1. Of files in angstrom, its voxel spacing."""
    filter_value: Line | None = None
    """Of star files: which tomogram's lines count; absent: all."""

    @model_validator(mode="after")
    def _options_suit_the_format(self) -> PointSet:
        if self.format == "ndjson":
            for key in ("columns", "delimiter", "order", "binning", "filter_value"):
                if getattr(self, key) is not None:
                    raise AtKey(key, "ndjson says all of that itself; leave it out")
        return self

    def options(self) -> dict[str, Any]:
        """What the format's reader is told besides."""
        return self.model_dump(include={"columns", "delimiter", "order", "binning", "filter_value"}, exclude_none=True)
