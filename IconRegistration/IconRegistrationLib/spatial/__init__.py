"""Geometry, displacement fields, sampling and lattices: values and arithmetic in mm."""
