"""What the bodies of `/v1/chat/completions` and `/v1/completions` have in common.

Sources: OpenAI API reference; vLLM's "extra parameters" of its OpenAI-compatible server.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, ValidationInfo, create_model, field_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas.constraints import ConstrainedRequest
from chat_gateway.schemas.fields import WRITTEN_AS_FRACTION, ModelName, Strict, User, Whole
from chat_gateway.schemas.inert import InertInGeneration
from chat_gateway.schemas.sampling import sampling_fields
from triton_chat.types import SamplingParams

SEEDS: Final = 2**64
"""So many different seeds the engine has; a test holds it to the engine's."""
_ANY_SEED: Final = -1
"""vLLM's word for none."""

_Seed = Annotated[int, Field(ge=-SEEDS // 2, le=SEEDS - 1), WRITTEN_AS_FRACTION]
_Count = Annotated[int, Field(ge=1), WRITTEN_AS_FRACTION]


class StreamOptions(Strict):
    include_usage: bool | None = Field(
        None, description="Send the usage in a separate last chunk; all other chunks then have `usage: null`."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: every chunk has the usage so far, over all choices."
    )
    include_obfuscation: bool | None = Field(None, description="Not used: no padding is added to chunks.")

    @property
    def continuous_usage(self) -> bool:
        return bool(self.include_usage and self.continuous_usage_stats)


class StreamableRequest(InertInGeneration):
    """Of which model, how many answers, and in how many pieces."""

    model: ModelName
    n: _Count | None = Field(None, description="Number of answers per prompt; they share its prefix cache.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: User | None = None


if TYPE_CHECKING:

    class SampledRequest(StreamableRequest):
        """The fields of `SamplingParams`. No type checker sees what is made, so here are those that the code names."""

        max_tokens: int | None
        return_token_ids: bool | None

else:
    SampledRequest = create_model("SampledRequest", __base__=StreamableRequest, **sampling_fields())


class GenerationRequest(ConstrainedRequest, SampledRequest):
    """The fields that `/v1/chat/completions` and `/v1/completions` share."""

    seed: _Seed | None = Field(
        None, description="64 bits, signed or not; -1 is none. Choice `i` is drawn with `seed + i`, modulo 2**64."
    )
    prompt_logprobs: Whole | None = Field(
        None, description="Alternatives to report per token of the prompt; not for streams."
    )

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_for_streams(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream"):
            raise PydanticCustomError("unsupported", "not supported for streams; leave it out, or send stream: false")
        return value

    @field_validator("stream_options")
    @classmethod
    def _only_for_streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("unsupported", "only for streams; send stream: true, or leave it out")
        return value

    @property
    def places_of_constraint(self) -> dict[str, str]:
        """Where the caller wrote what `sampling` says in `structured_outputs`."""
        constraint = self.constraint()
        return {} if constraint is None else constraint.places

    @property
    def num_answers(self) -> int:
        """To each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage

    def sampling_params(self, **named_otherwise: Any) -> SamplingParams:
        """How to sample one choice; the seed is that of the first one.

        Args:
            named_otherwise: parameters that this request has under other names, or by other rules.
        """
        given = {field.name: getattr(self, field.name) for field in fields(SamplingParams)}
        seed = None if self.seed in (None, _ANY_SEED) else self.seed % SEEDS
        constraint = self.constraint()
        outputs = None if constraint is None else constraint.outputs
        return SamplingParams(**{**given, "seed": seed, "structured_outputs": outputs, **named_otherwise})
