"""ICON-family networks: architecture, inference, model cards, weights, devices."""
