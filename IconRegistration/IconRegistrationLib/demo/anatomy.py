"""Define the anatomy of the phantom: tissues, structures with their codes, landmarks and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ..spatial.geometry import Segment

#: Tissue -> (CT in HU with contrast agent, MR in arbitrary units).
TISSUES = {
    "air": (-1000, 12),
    "fat": (-100, 820),
    "muscle": (55, 330),
    "lung": (-850, 55),
    "lung vessel": (60, 190),
    "liver": (112, 480),
    "liver vessel": (175, 330),
    "spleen": (130, 370),
    "kidney": (190, 420),
    "medulla": (125, 300),
    "myocardium": (100, 350),
    "blood": (230, 190),
    "vein": (165, 210),
    "cortical bone": (700, 90),
    "spongy bone": (260, 440),
    "disc": (85, 290),
    "cerebrospinal fluid": (12, 130),
    "cartilage": (120, 210),
    "water": (12, 150),
    "bowel": (45, 390),
}


def _terminology(code: str, meaning: str, side: str | None = None) -> dict[str, str]:
    """Return Slicer's segment tag for a SNOMED CT structure, with its laterality where it has one."""
    modifier = {None: "^^", "left": "SCT^7771000^Left", "right": "SCT^24028007^Right"}[side]
    entry = "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure"
    return {"TerminologyEntry": f"{entry}~SCT^{code}^{meaning}~{modifier}~Anatomic codes - DICOM master list~^^~^^"}


def _segment(name, value, layer, rgb, code, meaning, side=None) -> Segment:
    color = tuple(c / 255 for c in rgb)
    return Segment(name, value, layer, color, f"Segment_{layer}_{value}", _terminology(code, meaning, side))


#: Layer 0 holds the organs; the body and the thorax contain others and have layers of their own.
SEGMENTS = (
    _segment("right lung", 1, 0, (197, 165, 145), "39607008", "Lung", "right"),
    _segment("left lung", 2, 0, (215, 182, 160), "39607008", "Lung", "left"),
    _segment("heart", 3, 0, (206, 110, 84), "80891009", "Heart"),
    _segment("liver", 4, 0, (221, 130, 101), "10200004", "Liver"),
    _segment("spleen", 5, 0, (157, 108, 162), "78961009", "Spleen"),
    _segment("stomach", 6, 0, (216, 170, 105), "69695003", "Stomach"),
    _segment("right kidney", 7, 0, (185, 102, 83), "64033007", "Kidney", "right"),
    _segment("left kidney", 8, 0, (165, 82, 103), "64033007", "Kidney", "left"),
    _segment("aorta", 9, 0, (224, 67, 56), "15825003", "Aorta"),
    _segment("vena cava", 10, 0, (0, 151, 206), "64131007", "Inferior vena cava"),
    _segment("spine", 11, 0, (226, 202, 134), "421060004", "Vertebral column"),
    _segment("ribs", 12, 0, (253, 232, 158), "113197003", "Rib"),
    _segment("body", 1, 1, (177, 122, 101), "38266002", "Entire body"),
    _segment("thorax", 1, 2, (111, 184, 210), "51185008", "Thorax"),
)

#: Landmarks in body coordinates of the moving image, mm.
LANDMARKS = {
    "right diaphragm dome": (-62, -15, 26),
    "left diaphragm dome": (66, -15, 10),
    "liver, right lower tip": (-88, 5, -88),
    "gallbladder": (-42, -58, -62),
    "portal bifurcation": (-40, -5, -35),
    "spleen, middle": (95, 24, -44),
    "stomach, middle": (60, -38, -28),
    "right kidney, upper pole": (-58, 40, -30),
    "right kidney, lower pole": (-66, 38, -118),
    "left kidney, upper pole": (58, 40, -18),
    "left kidney, lower pole": (66, 38, -106),
    "heart apex": (64, -58, 32),
    "left ventricle, middle": (38, -40, 44),
    "aortic arch": (14, 10, 118),
    "aorta at the diaphragm": (19, 42, 0),
    "carina": (0, 2, 92),
    "vertebra, upper": (0, 50, 98),
    "vertebra, lower": (0, 50, -98),
    "sternum, lower end": (0, -99, 12),
    "navel": (0, -108, -110),
}


# Shapes: arrays of coordinates in, approximate distance to the surface in mm out, positive inside.


def _superellipse(x, y, half_x, half_y, power=2.0):
    r = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** (1 / power)
    return (1 - r) * np.minimum(half_x, half_y)


def _ellipsoid(p, centre, radii):
    x, y, z = ((a - np.float32(c)) / np.float32(r) for a, c, r in zip(p, centre, radii, strict=True))
    return (1 - np.sqrt(x * x + y * y + z * z)) * np.float32(min(radii))


def _tube(p, path, radius):
    nearest = np.float32(np.inf)
    for first, last in pairwise(path):
        start, along = np.array(first, np.float32), np.subtract(last, first, dtype=np.float32)
        dx, dy, dz = (a - s for a, s in zip(p, start, strict=True))
        t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / (along @ along), 0, 1)
        squared = (dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dz - t * along[2]) ** 2
        nearest = np.minimum(nearest, squared)
    return np.float32(radius) - np.sqrt(nearest)


def _repeat(z, period, half):
    """Repeat slabs of half thickness `half` along z, one of them centred at 0."""
    return np.float32(half) - np.abs((z + period / 2) % period - period / 2)


def anatomy(p: np.ndarray, texture: np.ndarray) -> Iterator[tuple[np.ndarray, str, str | None]]:
    """Yield the torso in the order of painting: (distance, tissue, segment of layer 0 or None to keep what is there).

    p: (3, n) body coordinates, float32.  texture: (5, n).  First come "body" and "thorax", the segments of the other
    layers. All numbers are mm and were chosen by eye.
    """
    x, y, z = p
    t_coarse, t_tube_a, t_tube_b, t_bowel, _ = texture
    left = x > 0

    waist = 1 - 0.05 * np.exp(-(((z + 55) / 60) ** 2)) - 0.22 * np.clip((z - 80) / 90, 0, 1) ** 2
    body = _superellipse(x, y, 160 * waist, 112 * waist, 2.4)
    fat = 11 + 7 * np.clip(-z / 120, 0, 1) + t_coarse
    cavity = _superellipse(x, y + 16, 131 * waist, 79 * waist, 2.3)
    dome = -62 + 88 * np.exp(-(((x + 60) / 62) ** 2) - ((y + 15) / 66) ** 2)
    dome += 74 * np.exp(-(((x - 66) / 60) ** 2) - ((y + 15) / 66) ** 2)
    above, below = (z - dome) * np.float32(0.7), (dome - z) * np.float32(0.7)
    thorax = np.minimum(cavity, above)
    yield body, "fat", "body"
    yield thorax, "fat", "thorax"

    yield body - fat, "muscle", None
    yield cavity, "fat", None
    yield np.minimum(cavity, 2.5 - np.abs(z - dome) * np.float32(0.7)), "muscle", None

    # Bowel fills the lower cavity; gas collects at the front, for the patient lies on the back.
    loops = np.minimum(np.minimum(cavity - 7, below - 25), (t_bowel + 0.15) * 9)
    yield loops, "muscle", None
    yield loops - 2.5, "bowel", None
    yield np.minimum(loops - 4, (t_coarse - 0.5) * 14 - (y + 40) * np.float32(0.3)), "air", None
    for side in (-1, 1):
        yield _tube(p, [(22 * side, 56, -40), (36 * side, 52, -100), (50 * side, 40, -190)], 17), "muscle", None

    # Tubes where two random functions vanish together: the vessels of the lungs and of the liver.
    branches = 1 - (t_tube_a**2 + t_tube_b**2) * np.float32(9)
    heart = np.minimum(_ellipsoid(p, (20, -38, 50), (57, 46, 46)), above - 1)
    mediastinum = np.minimum(_superellipse(x - 4, y + 10, 27, 95), 200 - z)
    superior_cava = _tube(p, [(-24, -24, 70), (-22, -14, 180)], 9)
    lungs = np.minimum(np.minimum(thorax - 5, -mediastinum), -np.maximum(heart + 3, superior_cava + 1))
    for name, inside in (("right lung", np.where(left, -9, lungs)), ("left lung", np.where(left, lungs, -9))):
        yield inside, "lung", name
    yield np.minimum(lungs, branches * 4), "lung vessel", None
    yield heart, "myocardium", "heart"
    for centre, radii in (
        ((40, -40, 43), (24, 21, 28)),
        ((0, -58, 44), (22, 15, 28)),
        ((6, -10, 66), (32, 14, 18)),
        ((-22, -34, 56), (15, 18, 24)),
    ):
        yield np.minimum(_ellipsoid(p, centre, radii), heart - 3), "blood", None
    yield _tube(p, [(0, 6, 180), (0, 2, 92), (-34, 6, 70)], 8), "air", None
    yield _tube(p, [(0, 2, 92), (36, 8, 68)], 7), "air", None

    under = np.minimum(cavity - 4, below - 4)
    lobes = np.maximum(
        _ellipsoid(p, (-72, -12, -28), (72, 72, 74)), _ellipsoid(p, (0, -42, -16), (58, 38, 30)) + t_coarse
    )
    liver = np.minimum(under, lobes)
    yield liver, "liver", "liver"
    yield np.minimum(liver - 2, branches * 4), "liver vessel", None
    yield _tube(p, [(-4, 8, -62), (-40, -5, -35), (-78, -14, -24)], 6), "vein", None
    yield _ellipsoid(p, (-42, -58, -62), (13, 14, 22)), "water", None
    stomach = np.minimum(under - 1, _ellipsoid(p, (60, -38, -28), (37, 36, 36)))
    yield stomach, "muscle", "stomach"
    yield stomach - 4, "water", "stomach"
    yield np.minimum(stomach - 4, -52 - y), "air", "stomach"
    yield np.minimum(under, _ellipsoid(p, (94, 24, -42), (30, 46, 50))), "spleen", "spleen"
    for name, side, height in (("right kidney", -1, -74), ("left kidney", 1, -62)):
        q = (x - np.float32(62 * side) + side * (z - height) * np.float32(0.09), y - 40, z - height)
        kidney = _ellipsoid(q, (0, 0, 0), (27, 24, 50))
        yield kidney, "kidney", name
        yield np.minimum(kidney - 7, t_coarse * 8), "medulla", name
        yield _ellipsoid(q, (-12 * side, -3, 0), (15, 9, 22)), "fat", None

    aorta = _tube(p, [(6, -20, 84), (2, -18, 108), (14, 10, 119), (23, 38, 104), (22, 44, 60), (17, 40, -20)], 12.5)
    aorta = np.maximum(aorta, _tube(p, [(17, 40, -20), (8, 30, -100), (5, 28, -190)], 10))
    yield aorta, "blood", "aorta"
    cava = _tube(p, [(-21, 27, -190), (-24, 26, -80), (-22, 12, -10), (-18, -12, 42)], 11)
    yield np.minimum(cava, -heart), "vein", "vena cava"
    yield np.minimum(superior_cava, -heart), "vein", None

    # Spine: vertebrae 28 mm apart with a disc between two, arch, processes.
    front = y - 50
    vertebra = _superellipse(x, front, 21, 16, 2.4)
    level = _repeat(z - 98, 28, 11)
    yield vertebra, "disc", "spine"
    yield np.minimum(vertebra, level), "cortical bone", "spine"
    yield np.minimum(vertebra - 2.5, level - 2), "spongy bone", "spine"
    arch = np.minimum(14 - np.hypot(x, y - 73), _repeat(z - 98, 28, 12))
    spinous = np.minimum(np.minimum(3.5 - np.abs(x), 13 - np.abs(y - 91)), _repeat(z - 90, 28, 9))
    transverse = np.minimum(np.minimum(36 - np.abs(x), 5 - np.abs(y - 76)), _repeat(z - 98, 28, 6))
    yield np.maximum(np.maximum(arch, spinous), transverse), "cortical bone", "spine"
    yield 9 - np.hypot(x, y - 73), "cerebrospinal fluid", "spine"
    yield 5 - np.hypot(x, y - 73), "muscle", "spine"

    # Ribs slope down to the front within the wall of the chest and become cartilage beside the sternum.
    wall = 4.5 - np.abs(cavity + 4)
    slope = z - np.float32(0.42) * y
    rib = np.minimum(np.minimum(wall, _repeat(slope - 12, 27, 6)), np.minimum(slope + 88, np.abs(x) - 20))
    bony = np.maximum(y + 70, np.abs(x) - 62)
    yield rib, "cartilage", "ribs"
    yield np.minimum(rib, bony), "cortical bone", "ribs"
    yield np.minimum(rib - 2.2, bony), "spongy bone", "ribs"
    sternum = np.minimum(np.minimum(wall, 17 - np.abs(x)), np.minimum(-y, z - 6))
    yield sternum, "cortical bone", "ribs"
    yield sternum - 2, "spongy bone", "ribs"
