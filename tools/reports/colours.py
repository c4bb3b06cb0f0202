# SPDX-License-Identifier: Apache-2.0
"""One colour per class, the same in every figure."""

from __future__ import annotations

# Variations of the hues of Okabe and Ito (2008), then the nine colours that are farthest from those and each other
# with normal sight and with simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009): no two are
# closer than 13 in CIELAB, and none is darker than L* 50, so that all stand out on black and on grey tissue.
COLOURS = (
    "#f5a300",
    "#4cb4ff",
    "#00c08a",
    "#fff04d",
    "#f0641e",
    "#ff8fd0",
    "#8c7bff",
    "#cce699",
    "#ee2a44",
    "#22e6ff",
    "#e63399",
    "#bbff77",
    "#bb55c4",
    "#d4b25e",
    "#5e884c",
    "#a2ffd4",
)


def pick_colour(value: int) -> str:
    """Return the colour of label `value` (1 is the first class) as `#rrggbb`; they repeat after 16 classes."""
    return COLOURS[(value - 1) % len(COLOURS)]
