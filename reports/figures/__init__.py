"""The paper's figures from a results folder, each as SVG and PNG with the numbers behind it as CSV."""

from reports.figures.draw import FOLDER, Drawn, draw_all

__all__ = ["FOLDER", "Drawn", "draw_all"]
