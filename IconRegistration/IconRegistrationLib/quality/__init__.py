"""Measure and judge displacement fields."""
