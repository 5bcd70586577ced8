"""Show a registration in a notebook: verdicts in colours and words, and one picture."""

from __future__ import annotations

import base64
import html
import struct
import zlib

import numpy as np

from ..quality.verdicts import AMBER, GREEN, RED, level_in_words
from ..spatial.displacement import DisplacementField
from ..spatial.field import warp_image
from ..spatial.geometry import Grid, Image
from ..text import tr
from .results import Inputs, Results

#: Pixels along the longer side of a slice in the picture.
PIXELS = 200
#: Background and text of a verdict's mark; readable on white and on black pages.
_COLOURS = {GREEN: ("#1a7f37", "#fff"), AMBER: ("#f0b429", "#000"), RED: ("#cf222e", "#fff")}


def html_of(results: Results, inputs: Inputs) -> str:
    """Return the verdicts and a picture of a registration as HTML; the page's own text colour is used.

    Parameters
    ----------
    results : Results
    inputs : Inputs
        What was registered.
    """
    rows = "".join(
        "<tr>"
        f'<td style="background:{_COLOURS[verdict.level][0]};color:{_COLOURS[verdict.level][1]};text-align:center;'
        f'padding:2px 8px;border-radius:4px">{html.escape(level_in_words(verdict.level))}</td>'
        f'<td style="text-align:left"><b>{html.escape(verdict.measure)}</b></td>'
        f'<td style="text-align:left">{html.escape(verdict.meaning)}</td>'
        "</tr>"
        for verdict in results.report.verdicts
    )
    picture = base64.b64encode(png_of(slices_before_and_after(results, inputs))).decode("ascii")
    caption = tr("Fixed image in red, moving image in cyan: before and after. Where they agree it is grey.")
    title = tr("{moving} registered to {fixed}", moving=inputs.moving.name, fixed=inputs.fixed.name)
    return (
        f'<div><p><b>{html.escape(title)}</b></p><table style="border-spacing:8px 3px;border-collapse:separate">{rows}'
        f'</table><img src="data:image/png;base64,{picture}" alt="{html.escape(caption)}">'
        f"<p><small>{html.escape(caption)}</small></p></div>"
    )


def slices_before_and_after(results: Results, inputs: Inputs) -> np.ndarray:
    """Overlay the middle slices of the fixed and the moving image, before and after the registration, side by side.

    Returns
    -------
    ndarray, uint8 [row, column, RGB]
        Fixed in red, moving in green and blue; patient's left on the right, anterior (or head) up.
    """
    plane = _middle_plane(inputs.fixed.grid)
    still = DisplacementField(np.zeros((1, 1, 1, 3), np.float32), Grid((1, 1, 1), np.eye(4)))
    outside = results.registration.outside
    fixed, before, after = (
        warp_image(image, field, plane, outside=value).array[0]
        for image, field, value in (
            (inputs.fixed, still, float(inputs.fixed.array.min())),
            (inputs.moving, still, outside),
            (inputs.moving, results.registration.forward, outside),
        )
    )
    red = _grey(fixed, inputs.fixed)
    pictures = [np.stack([red, other, other], axis=-1) for other in (_grey(v, inputs.moving) for v in (before, after))]
    gap = np.full((len(red), 8, 3), 128, np.uint8)
    return np.concatenate([pictures[0], gap, pictures[1]], axis=1)


def png_of(pixels: np.ndarray) -> bytes:
    """Encode pixels, uint8 [row, column, RGB], as PNG (ISO/IEC 15948), without a further package."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )


def _middle_plane(grid: Grid) -> Grid:
    """Return the axial plane through the middle of a grid's box as a grid of one slice, row 0 at the top.

    Its axes are those of the world, so that every image looks the same way: columns to the patient's left, rows to the
    back.
    """
    corners = grid.corners(faces=True)
    low, high = corners.min(0), corners.max(0)
    step = float((high - low)[:2].max() / PIXELS)
    size = np.maximum(np.ceil((high - low)[:2] / step).astype(int), 1)
    origin = [low[0] + step / 2, low[1] + step / 2, grid.centre[2]]
    return Grid.from_parts((*size, 1), (step, step, step), origin)


def _grey(values: np.ndarray, image: Image) -> np.ndarray:
    """Return values as uint8, scaled from the 1st to the 99th percentile of the finite values of the image."""
    sample = image.array.ravel()[:: max(1, image.array.size // 100_000)].astype(np.float32)
    low, high = np.percentile(sample[np.isfinite(sample)], (1, 99))
    return (255 * ((np.nan_to_num(values) - low) / max(high - low, 1e-6)).clip(0, 1)).astype(np.uint8)
