"""A batch of requests to a batch of answers. What goes wrong with one request is that request's own answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chat_engine.errors import ChatError, InvalidArgumentError, NotComputedError
from embedder.config import EmbedderConfig
from embedder.encoder import Encoder, Vector
from embedder.parse import ParsedRequest, RequestParser, WireRequest

log = logging.getLogger(__name__)

_MAX_PARSERS = 8


@dataclass(frozen=True)
class Answer:
    """The vectors of a request, float32 `[rows, dimensions]`, each of length 1, and the tokens of its rows."""

    embeddings: npt.NDArray[np.float32]
    num_tokens: list[int]


class EmbeddingService:
    """One model: its parser and its encoder. Make it and use it on one thread; see `Encoder`."""

    def __init__(self, config: EmbedderConfig) -> None:
        """Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint."""
        self._encoder = Encoder(config)
        self._parser = RequestParser(self._encoder.checkpoint, config.max_text_bytes)
        # The tokenizer lets go of Python's lock, so the texts of several requests are encoded side by side.
        self._parsers = ThreadPoolExecutor(min(_MAX_PARSERS, len(os.sched_getaffinity(0))), thread_name_prefix="parse")

    def answer(self, requests: Sequence[WireRequest | ChatError]) -> list[Answer | ChatError]:
        """An answer or an error for each request; a request that could not be read is its own answer."""
        parsed = list(self._parsers.map(self._parse, requests))
        good = [request for request in parsed if isinstance(request, ParsedRequest)]
        vectors = iter(self._encoder.encode([row for request in good for row in request.rows]))
        return [
            _answer(request, [next(vectors) for _ in request.rows]) if isinstance(request, ParsedRequest) else request
            for request in parsed
        ]

    def works(self) -> bool:
        """Whether the model can compute."""
        return self._encoder.works()

    def close(self) -> None:
        """Ends the threads."""
        self._parsers.shutdown()

    def _parse(self, request: WireRequest | ChatError) -> ParsedRequest | ChatError:
        if isinstance(request, ChatError):
            return request
        try:
            return self._parser.parse(request)
        except InvalidArgumentError as error:
            return error
        except Exception:
            log.exception("a request could not be parsed")
            return ChatError("internal error: the request could not be parsed")


def _answer(request: ParsedRequest, found: list[Vector | NotComputedError]) -> Answer | ChatError:
    """One status a request: the first row that failed decides."""
    vectors = []
    for vector in found:
        if isinstance(vector, NotComputedError):
            return vector
        vectors.append(vector[: request.dimensions])
    return Answer(unit(np.stack(vectors)), [len(row) for row in request.rows])


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The vectors `[rows, components]`, each divided by its length."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled
