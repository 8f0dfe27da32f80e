"""How mixoff's pictures look: colours, and the axes that they are drawn on. Knows no data.

Colours are those of Okabe and Ito, "Color universal design" (2008), which most people tell apart.
Paper is white whatever theme a notebook has, so that a picture reads the same everywhere.
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
GREY, LIGHT = "#555555", "#BBBBBB"


def new_axes(width: float = 7.5, height: float = 4.0) -> Axes:
    """Return empty axes on a figure of their own, of a size in inches."""
    axes: Axes = plt.subplots(figsize=(width, height), layout="constrained")[1]
    return axes
