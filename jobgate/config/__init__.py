"""
The configuration: load it, check it, explain what is wrong with it.

`jobgate.toml` becomes a `GateConfig`: its keys are in `settings`, the kinds of their values
in `units`; `reading` checks and explains, `writing` shows the effective one.
"""

from jobgate.config.reading import from_tables, is_loopback, is_queue_name, load
from jobgate.config.settings import (
    Backoff,
    BatchConfig,
    CallbackSettings,
    GateConfig,
    GateSettings,
    QueueConfig,
    Scale,
    TokenConfig,
    WorkerConfig,
    file_of,
)
from jobgate.config.units import AUTO, FULL, Bytes, Linger, Rate, Seconds, Secret
from jobgate.config.writing import to_toml

__all__ = [
    "AUTO",
    "FULL",
    "Backoff",
    "BatchConfig",
    "Bytes",
    "CallbackSettings",
    "GateConfig",
    "GateSettings",
    "Linger",
    "QueueConfig",
    "Rate",
    "Scale",
    "Seconds",
    "Secret",
    "TokenConfig",
    "WorkerConfig",
    "file_of",
    "from_tables",
    "is_loopback",
    "is_queue_name",
    "load",
    "to_toml",
]
