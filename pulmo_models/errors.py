"""Errors of the models, raised with one sentence that an administrator can act on."""

from __future__ import annotations


class ModelError(Exception):
    """Base of every error that `pulmo_models` raises on purpose."""


class WeightsMissing(ModelError):
    """A weights file that a pipeline needs is not where its `WeightSpec` says."""


class WeightsCorrupt(ModelError):
    """A weights file is truncated, has the wrong digest, foreign keys or shapes, or holds more than tensors."""


class WeightsUnavailable(ModelError):
    """Weights cannot be fetched, or there is no place to put them."""


class WeightsUnknown(ModelError):
    """A checkpoint of the right structure that is not the published one that it was taken for."""


class DeviceUnavailable(ModelError):
    """The configured device does not exist here (`device = "cuda"` without a GPU)."""


class DeviceOutOfMemory(ModelError):
    """The device ran out of memory even with the smallest batch and no fallback was left."""


class UnknownPipeline(ModelError):
    """No pipeline is registered under that label, or a package that it requires is not installed."""
