"""The compiled loops of this layer, or None where this installation could not compile them and numpy does their work."""

try:
    from app.features import compiled
except ImportError:
    compiled = None

__all__ = ["compiled"]
