"""Chest imaging models: arrays in, findings out. Knows neither DICOM nor any database or network.

Usable on its own, from a notebook: build a :class:`pulmo_models.types.Volume`, take a pipeline from
:mod:`pulmo_models.registry`, call it, read :class:`pulmo_models.types.Findings`.
"""

__version__ = "0.3.0"
