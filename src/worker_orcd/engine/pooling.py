"""Combines the embeddings of a prompt's tokens into one."""

import numpy as np
from numpy.typing import NDArray

from worker_orcd.protocol.messages import Pooling

Vector = NDArray[np.float32]


class NotFinite(Exception):
    """The model computed an embedding that cannot be normalized."""


class Pool:
    """Collects the embeddings of a prompt's tokens as they are computed: in order, and again from the first token if
    the run is requeued."""

    def __init__(self, pooling: Pooling, length: int, dimensions: int) -> None:
        """For a prompt of `length` tokens. `dimensions` of the embedding are returned; 0: all."""
        self._pooling = pooling
        self._length = length
        self._dimensions = dimensions or None
        self._sum: NDArray[np.float64] | None = None

    def wants(self, position: int) -> bool:
        """Whether the embedding of the token at this position is needed."""
        return (
            self._pooling == "mean"
            or (self._pooling == "cls" and position == 0)
            or (self._pooling == "last" and position == self._length - 1)
        )

    def add(self, position: int, vector: Vector) -> None:
        """Add the embedding of the token at a position for which `wants` is true."""
        first = position == 0 or self._pooling != "mean"
        self._sum = vector.astype(np.float64) if first or self._sum is None else self._sum + vector

    @property
    def sum(self) -> NDArray[np.float64]:
        """The sum of the added embeddings."""
        if self._sum is None:
            raise AssertionError("no token of the prompt was computed")
        return self._sum

    def whole(self) -> bytes:
        """The prompt's embedding as 32-bit floats, of length one; so a sum serves as a mean.

        Raises:
            NotFinite: the vector has no length.
        """
        return normalized(self.sum[: self._dimensions])


def normalized(vector: NDArray[np.float64]) -> bytes:
    """A vector of length one in this direction, as 32-bit floats in little-endian order.

    Raises:
        NotFinite: the vector has no length.
    """
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise NotFinite("the model computed an embedding that cannot be normalized")
    return (vector / length).astype("<f4").tobytes()
