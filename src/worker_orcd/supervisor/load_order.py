"""The engine's `Load` message from the options. Imports no server, so that an engine loads before that is imported."""

import sys
from typing import Literal

from worker_orcd.protocol.framing import encode
from worker_orcd.protocol.messages import Load
from worker_orcd.settings import Settings
from worker_orcd.supervisor import model_file
from worker_orcd.supervisor.early import EarlyEngine
from worker_orcd.supervisor.prefix_memory import set_mib


def load_order(settings: Settings, model_path: str, model_bytes: int = 0) -> Load:
    """The engine's first message."""
    return Load(
        model_path=model_path,
        worker_id=str(settings.worker_id),
        gpu_device=settings.gpu_device,
        parallel=settings.parallel,
        context_length=settings.context_length,
        exact=settings.exact,
        threads=settings.threads,
        log_format=log_format(settings),
        prefix_cache=settings.prefix_cache == "on",
        model_bytes=model_bytes,
        embeddings=settings.embeddings,
        pooling=settings.pooling,
        side_cells=settings.side_cells,
    )


def prefix_mib(settings: Settings) -> int:
    """The size of the prefix store; 0 if it is disabled."""
    return settings.prefix_cache_mib if settings.prefix_cache == "on" else 0


def log_format(settings: Settings) -> Literal["json", "pretty"]:
    """The log format of both processes: as in the option, or by default `pretty` on a terminal and JSON elsewhere."""
    if settings.log_format != "auto":
        return settings.log_format
    return "pretty" if sys.stderr.isatty() else "json"


def loading(early: EarlyEngine | None, settings: Settings) -> EarlyEngine | None:
    """Have the engine load the model now. None if that fails: it is then ended, and the server reports the reason."""
    if early is None:
        return None
    try:
        model = model_file.inspect(settings.model_path, encoders=settings.embeddings)
        if early.store is not None:
            set_mib(early.store, prefix_mib(settings))
        early.connection.sendall(encode(load_order(settings, str(settings.model_path), model.size_bytes)))
    except (model_file.ModelFileError, OSError):
        early.end()
        return None
    return early
