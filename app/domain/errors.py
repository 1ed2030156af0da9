"""What can go wrong, in the words of the domain. Adapters translate library errors into these."""


class PropositionsError(Exception):
    """Base of all errors that this project raises on purpose; its text says what to do next."""


class ConfigurationError(PropositionsError):
    """A setting is missing or wrong."""


class StoreUnavailable(PropositionsError):
    """A store did not answer, or not in time. Trying again later may work."""


class LeftAlone(StoreUnavailable):
    """A dependency has failed again and again, and is given time to recover."""


class EventRefused(PropositionsError):
    """A store will never take this event, so sending it again does not help."""


class FeaturesUnavailable(StoreUnavailable):
    """Online features could not be read."""


class ModelRefused(PropositionsError):
    """A model is missing, damaged, or was made for other features than those served now."""


class ImportRefused(PropositionsError):
    """A source file cannot be read at all, or a strict import met a bad line."""


class KeyRefused(PropositionsError):
    """An API key does not exist, or cannot become what was asked for."""


class UnsupportedForest(PropositionsError):
    """A tree model that the bit-mask evaluator cannot score; score it with its own library."""
