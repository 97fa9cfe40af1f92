"""Models by name, as plain Flax modules."""

from ws_jax.models.resnet import MODELS, ResNet, create_model

__all__ = ["MODELS", "ResNet", "create_model"]
