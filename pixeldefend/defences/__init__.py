"""Defences: what images pass on their way to a classifier, and detectors."""
