"""worker-orcd: an inference worker whose jobs can always be cancelled, quickly and provably."""

__version__ = "0.1.0"
