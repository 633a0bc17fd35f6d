"""Choose the context length: at most what the model was trained for."""

import logging
from dataclasses import replace

from exporter.checkpoint.config import max_context_length
from exporter.checkpoint.reader import TargetCheckpoint
from exporter.config import ExportConfig
from exporter.errors import ExportError

logger = logging.getLogger(__name__)


def fit_context(config: ExportConfig, target: TargetCheckpoint) -> ExportConfig:
    """The configuration with a context that the model supports.

    Raises:
        ExportError: if the user asked for a longer one.
    """
    longest = max_context_length(target.config, str(target.folder / "config.json"))
    wanted = config.shapes.cache_length
    if longest is None or wanted <= longest:
        return config
    if config.context_asked:
        raise ExportError(
            f"{config.source.model}: the model was made for {longest} tokens, --context asks for "
            f"{wanted}; lower it"
        )
    logger.info(
        "context     %d tokens, which the model was made for (%s: %d)",
        longest,
        config.device,
        wanted,
    )
    return replace(config, shapes=config.shapes.within(longest))
