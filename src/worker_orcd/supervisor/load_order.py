"""The engine's `Load` message from the options. Imports no server, so that an engine can be started before it."""

import sys
from typing import Literal

from worker_orcd.protocol.messages import Load
from worker_orcd.settings import Settings
from worker_orcd.supervisor import model_file
from worker_orcd.supervisor.early import EarlyEngine
from worker_orcd.supervisor.prefix_memory import prefix_memory


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
    )


def prefix_store(settings: Settings) -> int | None:
    """The file of the prefix store; None if it is disabled.

    Raises:
        OSError: the file cannot be made.
    """
    stores = settings.prefix_cache == "on" and settings.prefix_cache_mib > 0
    return prefix_memory(settings.prefix_cache_mib) if stores else None


def log_format(settings: Settings) -> Literal["json", "pretty"]:
    """The log format of both processes: as in the option, or by default `pretty` on a terminal and JSON elsewhere."""
    if settings.log_format != "auto":
        return settings.log_format
    return "pretty" if sys.stderr.isatty() else "json"


def early_engine(settings: Settings) -> EarlyEngine | None:
    """Start the first engine now. Returns None if that fails; the server then reports the reason."""
    try:
        model = model_file.inspect(settings.model_path, encoders=settings.embeddings)
        load = load_order(settings, str(settings.model_path), model.size_bytes)
        return EarlyEngine.start(load, prefix_store(settings))
    except (model_file.ModelFileError, OSError):
        return None
