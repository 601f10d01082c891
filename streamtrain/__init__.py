"""streamtrain learns sparse CTR and recommendation models from a stream without end, exactly once."""

__all__ = ["__version__"]

__version__ = "0.1.0"
