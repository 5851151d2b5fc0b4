"""Figures of a results folder, each as SVG and PNG, with its numbers as CSV."""

from reports.figures.draw import Drawn, draw_all

__all__ = ["Drawn", "draw_all"]
