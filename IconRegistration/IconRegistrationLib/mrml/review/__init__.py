"""What each kind of Review control does to nodes; one file per kind, its functions under one name."""

from .amount import set_warp_amount, viewing_copy
from .comparison import (
    CURTAIN_DIRECTIONS,
    CutVolume,
    blend,
    checkerboard,
    curtain,
    cut_volume,
    flicker,
    match_window,
    show_carried,
    show_comparison,
)
from .cursor import corresponding_point, cursor_marker, place_cursor
from .deformation import deformation_line_width, deformation_spacing, grid_spacing, show_deformation, show_grid
from .scene_restore_point import SceneRestorePoint, put_under, take_out
from .segments import live_segments, outline_displays, show_outlines
from .trust import DISTRUST_LIMITS, number_text, report_table, show_overlay, trust_overlay

__all__ = [
    "CURTAIN_DIRECTIONS",
    "DISTRUST_LIMITS",
    "CutVolume",
    "SceneRestorePoint",
    "blend",
    "checkerboard",
    "corresponding_point",
    "cursor_marker",
    "curtain",
    "cut_volume",
    "deformation_line_width",
    "deformation_spacing",
    "flicker",
    "grid_spacing",
    "live_segments",
    "match_window",
    "number_text",
    "outline_displays",
    "place_cursor",
    "put_under",
    "report_table",
    "set_warp_amount",
    "show_carried",
    "show_comparison",
    "show_deformation",
    "show_grid",
    "show_outlines",
    "show_overlay",
    "take_out",
    "trust_overlay",
    "viewing_copy",
]
