"""Writes one run of the sample's CryoET dataset: what a microscope would have written, and what was made of it.

Every file lies where the portal's writer puts it, and every entity has its metadata JSON, under the names of the
portal's schema. All voxels are drawn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_assets.volume import Zyx

if TYPE_CHECKING:
    from em_assets.sample.cryoet_volumes import Content, Voxels

DATASET_ID = DEPOSITION_ID = 10000
SPACING_ANGSTROM = 13.48
HEADER_SPACING_ANGSTROM = 13.480796
"""In the header of an MRC file, where the folder's name says 13.480; a sibling of the real tomogram has this one."""
PIXEL_ANGSTROM = 3.3702
"""Of the tilt series; its Zarr rounds it."""
CHUNK: Zyx = (16, 16, 16)
"""The real one is 256 each way: several chunks at every level are wanted here, too."""
EMPTY_FROM: Zyx = (64, 64, 64)
"""Beyond it all is zero: a whole chunk of level 2, which is not written, and those of the finer levels."""
TILT_CHUNK: Zyx = (1, 1024, 1024)
TILT_ANGLES = (-40.0, -20.0, 0.0, 20.0, 40.0)
ACQUISITION_ORDER = (3, 1, 0, 2, 4)
"""When each was taken: dose symmetric."""
TILT_SHAPE: Zyx = (5, 37, 41)
FRAME_SHAPE: Zyx = (2, 12, 14)
EXPOSURE_DOSE = 2.4
WRITTEN_AT = 1728676818
"""`last_updated_at` of everything: files must not change with the clock."""
DATES = {"deposition_date": "2023-04-01", "last_modified_date": "2023-06-01", "release_date": "2023-06-01"}
AUTHORS = [{"name": "SAMPLE, nobody", "corresponding_author_status": True, "primary_author_status": True}]
IDENTITY = [[int(row == column) for column in range(4)] for row in range(4)]
MIDDLE_GREY, GREY_PER_UNIT, UNITS_PER_COUNT = 125, 40, 0.001
"""How drawn grey values become densities about 0, and how an MRC file's whole numbers count them."""


@dataclass(frozen=True)
class Run:
    """What is drawn for a run."""

    name: str
    shape: Zyx
    """Of the tomogram at full size."""
    mrc_depth: int
    """Slices in the MRC file, the middle ones."""
    mrc_dtype: str
    masks: dict[int, str]
    """By number of the annotation's folder, which is another in every run."""
    points: dict[int, str] = field(
        default_factory=lambda: {100: "cytosolic_ribosome", 101: "fatty_acid_synthase_complex"}
    )
    oriented_points: dict[int, str] = field(default_factory=lambda: {102: "nucleosome"})

    @property
    def key(self) -> str:
        return f"{DATASET_ID}/{self.name}"

    @property
    def spacing(self) -> str:
        return f"{self.key}/Reconstructions/VoxelSpacing{SPACING_ANGSTROM:.3f}"

    @property
    def tomogram(self) -> str:
        return f"{self.spacing}/Tomograms/100"


GENE_ONTOLOGY = {
    "cytosolic_ribosome": "GO:0022626",
    "fatty_acid_synthase_complex": "GO:0005835",
    "nucleosome": "GO:0000786",
    "cytoplasm": "GO:0005737",
    "vesicle": "GO:0031982",
    "nucleus": "GO:0005634",
}


@dataclass(frozen=True)
class RunWriter:
    """One run's files below the root of the tree."""

    root: Path
    run: Run
    seed: int

    def write(self) -> list[Zyx]:
        """Returns the shapes of the tomogram's levels."""
        write_json(self.root / self.run.key / "run_metadata.json", {"run_name": self.run.name, **stamp()})
        self._frames()
        self._tilt_series()
        self._alignment()
        for number, name in self.run.masks.items():
            self._mask(number, name)
        for number, name in self.run.points.items():
            self._points(number, name, "Point")
        for number, name in self.run.oriented_points.items():
            self._points(number, name, "OrientedPoint")
        return self._tomogram()

    def _both_forms(
        self, stem: str, voxels: Voxels, angstrom: float, chunk: Zyx, content: Content, *, mrc: bool = True
    ) -> list[Zyx]:
        from em_assets.sample.cryoet_volumes import write_mrc, write_ome_zarr

        if mrc:
            write_mrc(self.root / f"{stem}.mrc", voxels, voxel_size_angstrom=angstrom, content=content)
        folder = self.root / f"{stem}.zarr"
        return write_ome_zarr(folder, voxels, voxel_size_angstrom=angstrom, content=content, chunk=chunk)

    # What the microscope wrote

    def _frames(self) -> None:
        from em_assets.sample.cryoet_volumes import write_mrc

        run, folder = self.run, f"{self.run.key}/Frames"
        frames = []
        for order, angle in sorted(zip(ACQUISITION_ORDER, TILT_ANGLES, strict=True)):
            name = _frame_name(run, order, angle)
            voxels = self._drawn(FRAME_SHAPE, f"frame {order}").astype("<i2")
            write_mrc(self.root / folder / name, voxels, voxel_size_angstrom=PIXEL_ANGSTROM, content="tilt_series")
            frames.append(
                {
                    "acquisition_order": order,
                    "accumulated_dose": round(order * EXPOSURE_DOSE, 3),
                    "exposure_dose": EXPOSURE_DOSE,
                    "is_gain_corrected": False,
                    "path": f"{folder}/{name}",
                }
            )
        gain = self.root / f"{run.key}/Gains/CountRef.mrc"
        write_mrc(gain, self._drawn((1, *FRAME_SHAPE[1:]), "gain").astype("<f4"), voxel_size_angstrom=PIXEL_ANGSTROM)
        mdoc = f"{folder}/{run.name}.mdoc"
        _write_text(self.root / mdoc, _mdoc(run))
        metadata = {"frames_acquisition_file": mdoc, "frames": frames, "is_gain_corrected": False}
        write_json(self.root / folder / "frames_metadata.json", metadata | stamp())

    def _tilt_series(self) -> None:
        run, folder = self.run, f"{self.run.key}/TiltSeries/100"
        stem = f"{folder}/{run.name}"
        voxels = self._drawn(TILT_SHAPE, "tilt series").astype("<f4")
        shapes = self._both_forms(stem, voxels, PIXEL_ANGSTROM, TILT_CHUNK, "tilt_series")
        _write_text(self.root / f"{stem}.rawtlt", "".join(f"{angle:.2f}\n" for angle in TILT_ANGLES))
        metadata = {
            **_sizes(shapes),
            "acceleration_voltage": 300000,
            "spherical_aberration_constant": 2.7,
            "microscope": {
                "manufacturer": "SIMULATED",
                "model": "none (drawn)",
                "additional_info": "SAMPLE: drawn, not measured",
            },
            "microscope_optical_setup": {"energy_filter": "none"},
            "camera": {"manufacturer": "simulated", "model": "simulated"},
            "data_acquisition_software": "em_assets",
            "pixel_spacing": PIXEL_ANGSTROM,
            "tilt_axis": 84.7,
            "tilt_step": 20,
            "tilt_range": {"min": TILT_ANGLES[0], "max": TILT_ANGLES[-1]},
            "tilting_scheme": "Dose symmetric from 0.0 degrees",
            "total_flux": round(EXPOSURE_DOSE * len(TILT_ANGLES), 3),
            "tilt_series_quality": 1,
            "is_aligned": False,
            "binning_from_frames": 1,
            "frames_count": len(TILT_ANGLES),
            "run_name": run.name,
            "omezarr_dir": f"{stem}.zarr",
            "mrc_file": f"{stem}.mrc",
            "raw_tlt_path": f"{stem}.rawtlt",
            "per_section_parameter": [
                {"z_index": index, "frame_acquisition_order": order, "raw_angle": angle}
                for index, (order, angle) in enumerate(zip(ACQUISITION_ORDER, TILT_ANGLES, strict=True))
            ],
        }
        write_json(self.root / folder / "tiltseries_metadata.json", metadata | stamp())

    def _alignment(self) -> None:
        run = self.run
        stem = f"{run.key}/Alignments/100/{run.name}"
        shifts = [(55.43 - 20 * index, 25.5 + 10 * index) for index in range(len(TILT_ANGLES))]
        rows = [f"    0.029     1.000    -1.000     0.029  {x:8.2f}  {y:8.2f}\n" for x, y in shifts]
        _write_text(self.root / f"{stem}.xf", "".join(rows))
        _write_text(self.root / f"{stem}.tlt", "".join(f"{angle:8.2f}\n" for angle in TILT_ANGLES))
        metadata = {
            "format": "IMOD",
            "alignment_type": "GLOBAL",
            "method_type": "patch_tracking",
            "affine_transformation_matrix": IDENTITY,
            "volume_dimension": {
                axis: round(size * SPACING_ANGSTROM, 3) for axis, size in zip("zyx", run.shape, strict=True)
            },
            "volume_offset": {"x": 0, "y": 0, "z": 0},
            "tilt_offset": 0,
            "x_rotation_offset": 0,
            "is_portal_standard": False,
            "per_section_alignment_parameters": [
                {
                    "z_index": index,
                    "in_plane_rotation": [[0.029, 1.0], [-1.0, 0.029]],
                    "x_offset": round(x * PIXEL_ANGSTROM, 3),
                    "y_offset": round(y * PIXEL_ANGSTROM, 3),
                    "tilt_angle": angle,
                    "volume_x_rotation": 0,
                }
                for index, (angle, (x, y)) in enumerate(zip(TILT_ANGLES, shifts, strict=True))
            ],
            "alignment_path": f"{stem}.xf",
            "tilt_path": f"{stem}.tlt",
            "tiltx_path": None,
            "tiltseries_path": f"{run.key}/TiltSeries/100/tiltseries_metadata.json",
            "files": [f"{stem}.xf", f"{stem}.tlt"],
        }
        write_json(self.root / f"{run.key}/Alignments/100/alignment_metadata.json", metadata | stamp())

    # What was made of it

    def _tomogram(self) -> list[Zyx]:
        from em_assets.sample.cryoet_volumes import write_mrc, write_png

        run = self.run
        stem = f"{run.tomogram}/{run.name}"
        voxels = self._density()
        shapes = self._both_forms(stem, voxels, SPACING_ANGSTROM, CHUNK, "image", mrc=False)
        file = self.root / f"{stem}.mrc"
        write_mrc(file, _as_mrc(run, voxels), voxel_size_angstrom=HEADER_SPACING_ANGSTROM)
        grey = (voxels[run.shape[0] // 4] * GREY_PER_UNIT + MIDDLE_GREY).clip(0, 255).astype("u1")
        pictures = f"{run.spacing}/Images/100"
        for size in ("original", "snapshot", "thumbnail", "expanded"):
            write_png(self.root / f"{pictures}/key-photo-{size}.png", grey)
        metadata = {
            **_sizes(shapes),
            "voxel_spacing": SPACING_ANGSTROM,
            "reconstruction_method": "WBP",
            "reconstruction_software": "none (drawn)",
            "processing": "raw",
            "fiducial_alignment_status": "NON_FIDUCIAL",
            "ctf_corrected": False,
            "tomogram_version": 1,
            "is_visualization_default": True,
            "offset": {"x": 0, "y": 0, "z": 0},
            "affine_transformation_matrix": IDENTITY,
            "run_name": run.name,
            "omezarr_dir": f"{stem}.zarr",
            "mrc_file": f"{stem}.mrc",
            "alignment_metadata_path": f"{run.key}/Alignments/100/alignment_metadata.json",
            "key_photo": photos(pictures, "key-photo-"),
            **authored(),
        }
        write_json(self.root / run.tomogram / "tomogram_metadata.json", metadata)
        return shapes

    def _density(self) -> Voxels:
        """Float32 about 0, and zeros where nothing was reconstructed."""
        import numpy as np

        grey = self._drawn(self.run.shape, "").astype(np.float32)
        voxels: Voxels = ((grey - np.float32(MIDDLE_GREY)) / np.float32(GREY_PER_UNIT)).astype("<f4")
        voxels[tuple(slice(start, None) for start in EMPTY_FROM)] = 0
        return voxels

    def _drawn(self, shape: Zyx, what: str) -> Voxels:
        """Grey values; everything of a run has a seed of its own."""
        from em_assets.sample.texture import draw

        return draw(shape, self.seed + 1000 * sum(what.encode()))

    def _mask(self, number: int, name: str) -> None:
        """A ball, of 1 in int8."""
        import numpy as np

        z, y, x = self.run.shape
        at = np.ogrid[:z, :y, :x]
        radius = min(self.run.shape) // (3 if number % 2 else 6)
        distance = sum((axis - size // 2) ** 2 for axis, size in zip(at, self.run.shape, strict=True))
        mask: Voxels = np.asarray(distance < radius**2, np.int8)
        stem = f"{self.run.spacing}/Annotations/{number}/{name}-1.0_segmentationmask"
        self._both_forms(stem, mask, SPACING_ANGSTROM, CHUNK, "mask")
        files = [_file(form, f"{stem}.{form}", "SegmentationMask") for form in ("mrc", "zarr")]
        self._annotation(number, name, files, 1)

    def _points(self, number: int, name: str, shape: str) -> None:
        """A line for each, in voxels of the tomogram at full size."""
        z, y, x = self.run.shape
        lines = []
        for step in range(1, 8):
            where = {"x": x * step / 8, "y": y * (step * 3 % 8) / 8, "z": z * (step * 5 % 8) / 8}
            line: dict[str, Any] = {"type": "point", "location": where}
            if shape == "OrientedPoint":
                line = {"type": "orientedPoint", "location": where, "xyz_rotation_matrix": _quarter_turns(step)}
            lines.append(json.dumps(line) + "\n")
        key = f"{self.run.spacing}/Annotations/{number}/{name}-1.0_{shape.lower()}.ndjson"
        _write_text(self.root / key, "".join(lines))
        self._annotation(number, name, [_file("ndjson", key, shape)], len(lines))

    def _annotation(self, number: int, name: str, files: list[dict[str, Any]], count: int) -> None:
        metadata = {
            "annotation_ingest_id": f"{name}-1",
            "annotation_object": {"id": GENE_ONTOLOGY[name], "name": name.replace("_", " ")},
            "annotation_method": "drawn, not annotated",
            "annotation_software": "em_assets",
            "method_type": "simulated",
            "method_links": [{"link": "https://example.org", "link_type": "other", "custom_name": "SAMPLE"}],
            "ground_truth_status": True,
            "is_curator_recommended": True,
            "version": 1.0,
            "object_count": count,
            "files": files,
            "alignment_metadata_path": f"{self.run.key}/Alignments/100/alignment_metadata.json",
            **authored(),
        }
        write_json(self.root / f"{self.run.spacing}/Annotations/{number}/{name}-1.0.json", metadata)


def _as_mrc(run: Run, voxels: Voxels) -> Voxels:
    """The middle slices; whole numbers count thousandths."""
    import numpy as np

    first = (run.shape[0] - run.mrc_depth) // 2
    part = voxels[first : first + run.mrc_depth]
    dtype = np.dtype(run.mrc_dtype)
    return (np.rint(part / np.float32(UNITS_PER_COUNT)) if dtype.kind == "i" else part).astype(dtype)


def _quarter_turns(count: int) -> list[list[float]]:
    """About z."""
    cosine, sine = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[count % 4]
    return [[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]


def _file(form: str, key: str, shape: str) -> dict[str, Any]:
    return {"format": form, "path": key, "shape": shape, "is_visualization_default": form in ("zarr", "ndjson")}


def _frame_name(run: Run, order: int, angle: float) -> str:
    return f"{run.name}_{order:03}_{angle:.1f}.mrc"


def _mdoc(run: Run) -> str:
    """As SerialEM writes it, sections in the order in which they were taken."""
    lines = [
        f"PixelSpacing = {PIXEL_ANGSTROM}",
        "Voltage = 300",
        f"ImageFile = {run.name}.mrc",
        f"ImageSize = {TILT_SHAPE[2]} {TILT_SHAPE[1]}",
        "DataMode = 1",
        "",
        "[T = SerialEM: SAMPLE drawn by em_assets, not measured]",
        "",
        "[T =     Tilt axis angle = 84.7, binning = 1  spot = 6  camera = 0]",
    ]
    for order, angle in sorted(zip(ACQUISITION_ORDER, TILT_ANGLES, strict=True)):
        lines += ["", f"[ZValue = {order}]", f"TiltAngle = {angle}", f"ExposureDose = {EXPOSURE_DOSE}"]
        lines += [f"PixelSpacing = {PIXEL_ANGSTROM}", "RotationAngle = 174.7", "ExposureTime = 1"]
        lines += [f"SubFramePath = {_frame_name(run, order, angle)}", f"NumSubFrames = {FRAME_SHAPE[0]}"]
    return "\n".join(lines) + "\n"


def photos(folder: str, before: str) -> dict[str, str]:
    return {name: f"{folder}/{before}{name}.png" for name in ("snapshot", "thumbnail")}


# What every metadata file has


def stamp() -> dict[str, Any]:
    return {"deposition_id": DEPOSITION_ID, "last_updated_at": WRITTEN_AT}


def authored() -> dict[str, Any]:
    return {"authors": AUTHORS, "dates": DATES, **stamp()}


def _sizes(shapes: list[Zyx]) -> dict[str, Any]:
    scales = [dict(zip("zyx", shape, strict=True)) for shape in shapes]
    return {"scales": scales, "size": scales[0]}


def write_json(file: Path, content: dict[str, Any]) -> None:
    _write_text(file, json.dumps(content, indent=4))


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
