"""medjax: pretraining of medical image encoders in JAX; every method is a configuration."""

__version__ = '0.2.0'
