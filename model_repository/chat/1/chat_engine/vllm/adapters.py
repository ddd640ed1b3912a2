"""LoRA adapters in vLLM: checked before the checkpoint is loaded, and loaded before anybody is served."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, get_args

from vllm.config.lora import MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError
from chat_engine.vllm.adapter_files import Adapter, BaseWeights, check_base, find_adapter

log = logging.getLogger(__name__)


class Adapters:
    """Those of one model.

    Args:
        config: names them and the model.
        lora_config: vLLM's; None where there are none.

    Raises ConfigError for one that cannot be served, as far as its files show it.
    """

    def __init__(self, config: EngineConfig, lora_config: Any) -> None:
        self._config = config
        self._found = [find_adapter(name, place) for name, place in config.adapters.items()]
        for adapter in self._found:
            _check(adapter, lora_config)
        self._fits_base = self._check_base()
        self.requests: Mapping[str, LoRARequest] = {
            adapter.name: LoRARequest(adapter.name, number, str(adapter.folder.absolute()))
            for number, adapter in enumerate(self._found, start=1)
        }

    async def load(self, llm: AsyncLLM) -> None:
        """Loads all of them, so that a broken one ends the start and no request. Raises ConfigError."""
        self._fits_base or self._check_base()  # a checkpoint of a hub may have come only now
        for adapter in self._found:
            try:
                await llm.add_lora(self.requests[adapter.name])
            except Exception as error:
                raise ConfigError(f"adapters.{adapter.name}: vLLM cannot load it: {_line(error)}") from error
            log.info("adapter %s: rank %d, made for %s", adapter.name, adapter.rank, adapter.made_for)

    def _check_base(self) -> bool:
        """Whether it was possible."""
        base = BaseWeights.of(self._config.model, self._config.revision) if self._found else None
        if base:
            for adapter in self._found:
                check_base(adapter, base)
        return base is not None


def _check(adapter: Adapter, lora_config: Any) -> None:
    """What vLLM cannot do. Raises ConfigError."""
    most = lora_config.max_lora_rank
    if adapter.rank > most:
        enough = next((rank for rank in get_args(MaxLoRARanks) if rank >= adapter.rank), None)
        advice = f'set "vllm": {{"max_lora_rank": {enough}}}' if enough else "vLLM has no larger one"
        raise ConfigError(f"adapters.{adapter.name}: its rank {adapter.rank} is above max_lora_rank {most}; {advice}")
    try:
        PEFTHelper.from_local_dir(str(adapter.folder), None).validate_legal(lora_config)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"adapters.{adapter.name}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)
