"""The errors that mixoff raises. Their messages name the value, the rule and the way out."""


class MixoffError(Exception):
    """An operation that mixoff refuses or can't perform; the base of all its errors."""


class ConfigError(MixoffError, ValueError):
    """A setting that can't be used."""


class CheckpointError(MixoffError):
    """A checkpoint on disk that is missing, damaged or of another format."""


class TraceError(MixoffError):
    """A recording that is empty, damaged, of another format, or lacks the requested data."""
