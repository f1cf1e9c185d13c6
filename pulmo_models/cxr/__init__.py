"""Pipelines for frontal chest radiographs."""
