"""The paper's figures from a results folder, each as SVG and PNG with the numbers behind it as CSV."""

from reports.figures.draw import Drawn, draw_all

__all__ = ["Drawn", "draw_all"]
