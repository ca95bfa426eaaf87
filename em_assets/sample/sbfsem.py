"""The tags of one slice of a serial block-face series, as Gatan's software wrote them into EMPIAR-11759's DM3 files.

Names, types, order and values are those of the real headers as far as they are known (what identifies a person is
replaced); everything that stands before the pixels has the real size to the byte. One part is left out: some 300
settings of the microtome that nobody asks for.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import numpy.typing as npt

from em_assets.sample.dm3 import (
    FLOAT32,
    INT16,
    INT32,
    OCTET,
    UINT32,
    Array,
    Node,
    Struct,
    float32,
    float64,
    int16,
    int32,
    uint16,
    uint32,
)

PIXEL_UM = 0.007998250424861908
SLICE_THICKNESS_NM = 50.0
FIRST_ACQUIRED = dt.datetime(2018, 6, 11, 22, 27, 16)  # noqa: DTZ001  # the file states no zone
SECONDS_A_SLICE = 54
STAMP_EARLIER_SECONDS = 31
"""DigiScan's stamp is of the scan's start."""
GMS_VERSION = "3.21.1374.0"
MICRON = "\N{MICRO SIGN}m"
LINE_SEPARATOR = "\N{LINE SEPARATOR}"
"""Stands in the description and the time stamp where a line ends."""
RGBA, UINT8 = 23, 6
"""Codes of an image's data type: not those of a tag's."""
THUMBNAIL, IMAGE = 0, 1
"""Places in ImageList."""

Pixels = npt.NDArray[np.uint8]


def slice_tags(number: int, image: Pixels, thumbnail: Pixels) -> dict[str, Node]:
    """The root group of slice `number`: `image` (y, x) and its `thumbnail` (y, x, 4)."""
    name = f"3VBSED_slice_{number:04d}"
    return {
        "ApplicationBounds": _integers(0, 0, 1033, 1920),
        "DocumentObjectList": [_displayed(number)],
        "DocumentTags": {},
        "HasWindowPosition": True,
        "Image Behavior": {
            "ImageDisplayBounds": _floats(0, 0, 512, 512),
            "IsZoomedToWindow": True,
            "UnscaledTransform": _transform(),
            "ViewDisplayID": uint32(8),
            "WindowRect": _floats(0, 0, 512, 512),
            "ZoomAndMoveTransform": _transform(),
        },
        "ImageList": [_thumbnail(number, name, thumbnail), _image(number, name, image)],
        "ImageSourceList": [{"ClassName": "ImageSource:Simple", "Id": [uint32(0)], "ImageRef": uint32(IMAGE)}],
        "InImageMode": True,
        "LayoutType": "Unknown",
        "MinVersionList": [{"RequiredVersion": uint32(50659328)}],
        "NextDocumentObjectID": uint32(11 + 2 * number),
        "Page Behavior": _page_behavior(),
        "PageSetup": {
            "General": Struct(UINT32, (1, 1000, 8500, 11000, 1000, 1000, 0, 0)),
            "Win32": _octets(60),
            "Win32_DevModeW": _octets(1076),
            "Win32_DevNamesW": _octets(146),
        },
        "SentinelList": [],
        "Thumbnails": [
            {"ImageIndex": uint32(THUMBNAIL), "SourceSize_Pixels": _integers(image.shape[0], image.shape[1])}
        ],
        "WindowPosition": _integers(30, 30, 542, 542),
    }


def _displayed(number: int) -> dict[str, Node]:
    """How the image was shown: the tags that stand before all pixels."""
    return {
        "AnnotationGroupList": [],
        "AnnotationType": int32(20),
        "BackgroundColor": _colour(-1),
        "BackgroundMode": int16(2),
        "FillMode": int16(1),
        "ForegroundColor": _colour(0),
        "HasBackground": False,
        "ImageDisplayInfo": _display_info(number),
        "ImageDisplayType": int32(1),
        "ImageSource": uint32(0),
        "IsMoveable": True,
        "IsResizable": True,
        "IsSelectable": True,
        "IsTransferrable": True,
        "IsTranslatable": True,
        "IsVisible": True,
        "ObjectTags": {},
        "Rectangle": _floats(0, 0, 512, 512),
        "RestrictionStyle": uint32(0),
        "UniqueID": uint32(8),
    }


def _display_info(number: int) -> dict[str, Node]:
    low, high = 58.0 + number % 4, 122.0 + number % 3
    return {
        "BrightColor": _colour(-1),
        "Brightness": float32(0.5),
        "CaptionOn": False,
        "CaptionSize": uint16(10),
        "CLUT": Array(INT16, np.repeat(np.arange(256, dtype="<u2") * 257, 3), fields=3),
        "CLUTName": "Greyscale",
        "ComplexMode": uint32(4),
        "ComplexRange": float32(1000),
        "Contrast": float32(0.5),
        "ContrastMode": uint32(1),
        "DiffractionMode": False,
        "DimensionLabels": [""],
        "DoAutoSurvey": True,
        "EstimatedMax": float32(low),  # the two are the wrong way round in the real files, too
        "EstimatedMaxTrimPercentage": float32(0.001),
        "EstimatedMin": float32(high),
        "EstimatedMinTrimPercentage": float32(0.001),
        "Gamma": float32(0.5),
        "HighLimit": float32(high),
        "HiLimitContrastDeltaTriggerPercentage": float32(0),
        "IsIgnoreGirdBar": False,
        "IsInverted": False,
        "LowLimit": float32(low),
        "LowLimitContrastDeltaTriggerPercentage": float32(0),
        "MainSliceId": [uint32(0)],
        "MinimumContrast": float32(0),
        "RangeAdjust": float32(1),
        "SparseSurvey_GridSize": uint32(16),
        "SparseSurvey_NumberPixels": uint32(32),
        "SparseSurvey_UseNumberPixels": True,
        "SurveyTechique": uint32(2),
    }


def _thumbnail(number: int, name: str, pixels: Pixels) -> dict[str, Node]:
    rows, columns, _ = pixels.shape
    packed = np.ascontiguousarray(pixels).view("<i4")
    return {
        "ImageData": _image_data(Array(INT32, packed), (columns, rows), RGBA, 4, _calibration()),
        "ImageTags": {"GMS Version": {"Created": GMS_VERSION}},
        "Name": f"Image Of {name}",
        "UniqueID": _unique_id(2 * number),
    }


def _image(number: int, name: str, pixels: Pixels) -> dict[str, Node]:
    rows, columns = pixels.shape
    calibration = _calibration(PIXEL_UM, MICRON)
    return {
        "Description": f"pixel size : {LINE_SEPARATOR}0.0080{MICRON} x 0.0080{MICRON}{LINE_SEPARATOR}",
        "ImageData": _image_data(Array(OCTET, pixels), (columns, rows), UINT8, 1, calibration),
        "ImageTags": _image_tags(number, rows, columns),
        "Name": name,
        "UniqueID": _unique_id(2 * number + 1),
    }


def _image_data(
    data: Array, size_xy: tuple[int, int], data_type: int, depth: int, axis: dict[str, Node]
) -> dict[str, Node]:
    return {
        "Calibrations": {
            "Brightness": _calibration(),
            "Dimension": [axis, axis],
            "DisplayCalibratedUnits": True,
        },
        "Data": data,
        "DataType": uint32(data_type),
        "Dimensions": [uint32(size) for size in size_xy],
        "PixelDepth": uint32(depth),
    }


def _image_tags(number: int, rows: int, columns: int) -> dict[str, Node]:
    """What the microscope noted, as far as somebody may ask for it."""
    acquired = FIRST_ACQUIRED + dt.timedelta(seconds=SECONDS_A_SLICE * number)
    stamp = acquired - dt.timedelta(seconds=STAMP_EARLIER_SECONDS)
    ticks = 1.3173222436078186e17 + number * SECONDS_A_SLICE * 1e7
    return {
        "BSE Detector": {"Bright": float64(3.5294117647058822), "Contrast": float64(9.988333707776206)},
        "DataBar": {
            "Acquisition Date": acquired.strftime("%d.%m.%Y"),
            "Acquisition Time": acquired.strftime("%H:%M:%S"),
            "Acquisition Time (OS)": float64(ticks),
            "Device Name": "DigiScan",
            "Exposure Number": uint32(897131 + number),
            "Signal Name": "3VBSED",
        },
        "DigiScan": {
            "Flyback": float64(60),
            "Image Height": uint32(rows),
            "Image Width": uint32(columns),
            "Rotation": float64(0),
            "Sample Time": float64(0.5),
            "TimeStamp": f"{stamp:%a %b %d %H:%M:%S %Y}{LINE_SEPARATOR}",
        },
        "GMS Version": {"Created": GMS_VERSION, "Saved": GMS_VERSION},
        "Meta Data": {
            "Dimension info": {
                "2": {"Origin": float64(0), "Scale": float64(SLICE_THICKNESS_NM), "Units": "nm"},
            },
            "Format": "Image",
            "Signal": "DigiScan",
        },
        "Microscope Info": {
            "Emission Current (\N{MICRO SIGN}A)": float64(0),
            "Formatted Voltage": "1.9kV",
            "Illumination Mode": "SEM",
            "Imaging Mode": "IMAGING",
            "Indicated Magnification": float64(2159),
            "Name": "FEI Quanta",
            "Operation Mode": "SCANNING",
            "Probe Current (nA)": float64(0),
            "SEM Chamber Pressure (Torr)": float64(8.406849713859239e-06 - 1e-07 * number),
            "Stage Position": {
                "Stage X": float64(79.26780559398513),
                "Stage Y": float64(-773.6633039403846),
                "Stage Z": float64(21.049806806776274 + SLICE_THICKNESS_NM / 1000 * number),
            },
            "Voltage": float64(1900),
            "WD (mm)": float64(5.500151666250906),
        },
        "SBFSEM": {
            "Imaging": {
                "Record pixel size": float64(8),
                "Record scan height": uint32(rows),
                "Record scan width": uint32(columns),
            },
            "Record": {
                "Base file name": r"C:\Users\Sample\F57\F57-8\test1\F57-8_test1",
                "Cut speed": float64(100),
                "Slice number": uint32(250),
                "Slice thickness": float64(SLICE_THICKNESS_NM),
            },
        },
        "Session Info": {
            "Detector": "3VBSED",
            "Items": [
                _session_item("Operator", ""),
                _session_item("WD (mm)", "5591.26"),
                _session_item("Spot Size", "-2000.0"),
            ],
            "Operator": "",
            "Spot Size": "-2000.0",
            "WD (mm)": "5591.26",
        },
    }


def _session_item(label: str, value: str) -> dict[str, Node]:
    return {
        "Data Type": int32(20),
        "Label": label,
        "Precision": uint32(0),
        "Tag path": f"Session Info:{label}",
        "Units": "",
        "Value": value,
    }


def _page_behavior() -> dict[str, Node]:
    return {
        "DrawMargins": True,
        "DrawPaper": True,
        "IsFixedInPageMode": False,
        "IsZoomedToWindow": True,
        "LayedOut": False,
        "PageTransform": _transform(),
        "RestoreImageDisplayBounds": _floats(0, 0, 512, 512),
        "RestoreImageDisplayID": uint32(8),
        "TargetDisplayID": uint32(0xFFFFFFFF),
    }


def _calibration(scale: float = 1.0, units: str = "") -> dict[str, Node]:
    return {"Origin": float32(0), "Scale": float32(scale), "Units": units}


def _transform() -> dict[str, Node]:
    return {"Offset": _floats(0, 0), "Scale": _floats(1, 1)}


def _unique_id(number: int) -> list[Node]:
    words = np.random.PCG64([11759, number]).random_raw(4) >> np.uint64(33)
    return [uint32(int(word)) for word in words]


def _colour(level: int) -> Struct:
    return Struct(INT16, (level,) * 3)


def _integers(*values: int) -> Struct:
    return Struct(INT32, values)


def _floats(*values: float) -> Struct:
    return Struct(FLOAT32, values)


def _octets(size: int) -> Array:
    """A block that only the printer's driver understands."""
    return Array(OCTET, np.zeros(size, np.uint8))
