"""LoRA adapters in vLLM: checked before the checkpoint is loaded, and loaded before anybody is served."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from vllm.config.lora import MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError
from chat_engine.vllm.adapter_files import Adapter, BaseWeights, check_base, find_adapter, write_zeros

_ZEROS = " "  # no name of an adapter in the settings

log = logging.getLogger(__name__)


class Adapters:
    """Those of one model.

    vLLM 0.32 has two faults on CPUs. Where a request has no adapter, it computes with the one in its last slot as soon
    as another request of the batch has one (vllm-project/vllm, pull request 48421): so the model itself gets an adapter
    of zeros there. And `prompt_logprobs` end it where the head may have an adapter (issue 29955): so only what the
    adapters change may have one there.

    Args:
        config: names them and the model.
        on_cpu: whether vLLM is built for CPUs.

    Raises ConfigError for one whose files cannot be served.
    """

    def __init__(self, config: EngineConfig, *, on_cpu: bool) -> None:
        self._config = config
        self._found = [find_adapter(name, place) for name, place in config.adapters.items()]
        self._is_checked = self._check_base()
        self._needs_zeros = bool(self._found) and on_cpu
        self.requests: dict[str | None, LoRARequest] = {
            adapter.name: LoRARequest(adapter.name, number, str(adapter.folder.absolute()))
            for number, adapter in enumerate(self._found, start=1)
        }
        """What vLLM calls each; that of None is for the model itself, where it needs one."""

    @property
    def arguments(self) -> dict[str, object]:
        """Of vLLM, where the settings say nothing else."""
        if not self._needs_zeros:
            return {}
        return {"lora_target_modules": sorted(set().union(*(adapter.targets for adapter in self._found)))}

    def check(self, lora_config: Any) -> None:
        """Raises ConfigError for what vLLM cannot do with these settings of its."""
        for adapter in self._found:
            _check(adapter, lora_config)

    async def load(self, llm: AsyncLLM) -> None:
        """Loads all of them, so that a broken one ends the start and no request. Raises ConfigError."""
        if not self._is_checked:  # a checkpoint of a hub may have come only now
            self._check_base()
        for adapter in self._found:
            await _load(llm, self.requests[adapter.name])
            log.info("adapter %s: rank %d, made for %s", adapter.name, adapter.rank, adapter.made_for)
        if self._needs_zeros:
            with TemporaryDirectory() as folder:
                write_zeros(Path(folder), self._found[0])
                self.requests[None] = LoRARequest(_ZEROS, len(self._found) + 1, folder)
                await _load(llm, self.requests[None])

    def _check_base(self) -> bool:
        """Whether it was possible."""
        base = BaseWeights.of(self._config.model, self._config.revision) if self._found else None
        if base:
            for adapter in self._found:
                check_base(adapter, base)
        return base is not None


async def _load(llm: AsyncLLM, request: LoRARequest) -> None:
    try:
        await llm.add_lora(request)
    except Exception as error:
        raise ConfigError(f"adapters.{request.lora_name}: vLLM cannot load it: {_line(error)}") from error


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
