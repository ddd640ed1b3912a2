"""The Triton model `tokenizer`: what a chat model's tokenizer and chat template make of a text, and back.

The code is that of the chat models; this only adapts it. The tokenizer's own code runs without Python's lock, so a few
threads of one process do what several processes would, and load it once.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from triton_io import caller, process
from triton_io.caller import Caller
from triton_io.heartbeat import Heartbeat

from chat_engine.errors import ChatError, InvalidArgumentError
from chat_engine.service.stall import InHand
from chat_engine.tokenizer import DEFAULT_MODEL, TokenizerRequest, Tokenizers, Tokens

log = process.log_of("tokenizer")

_THREADS = 4


class TritonPythonModel:
    """One instance: the tokenizers and the threads that use them."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the tokenizer of `chat` where there is one. Raises ConfigError, or OSError for a missing checkpoint."""
        self._tokenizers = Tokenizers(Path(args["model_repository"]).parent)
        if DEFAULT_MODEL in self._tokenizers.models():
            self._tokenizers.find(None)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        self._places = threading.BoundedSemaphore(_THREADS)
        self._in_hand = InHand()
        self._heartbeat = Heartbeat(args["model_name"], self._in_hand.complaint, self._in_hand.is_empty)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Starts each request, waiting for a thread, so that what is too much waits in Triton's queue."""
        for request in requests:
            found = caller.read(request, _read)
            if found is not None:
                self._places.acquire()
                self._pool.submit(self._answer, *found)

    def finalize(self) -> None:
        """Waits for the requests that run."""
        try:
            self._pool.shutdown()
        finally:
            self._heartbeat.close()

    def _answer(self, request: TokenizerRequest, caller: Caller) -> None:
        try:
            with self._in_hand.work():
                response = _response(self._tokenizers.tokens(request))
            caller.send(response, is_last=True)
        except InvalidArgumentError as error:
            caller.fail(error)
        except Exception:
            log.exception("a request failed")
            caller.fail(ChatError("the tokenizer failed: internal error"))
        finally:
            self._places.release()


def _read(request: pb_utils.InferenceRequest, caller: Caller) -> tuple[TokenizerRequest, Caller]:
    """Copies, because the request's memory is Triton's again once `execute` has returned."""
    inputs = {tensor.name(): bytes(tensor.as_numpy()[0]) for tensor in request.inputs()}
    return TokenizerRequest(**inputs, parameters=json.loads(request.parameters())), caller


def _response(tokens: Tokens) -> pb_utils.InferenceResponse:
    texts = {
        "token_ids": _json(tokens.ids),
        "text_output": tokens.text,
        "token_strs": "" if tokens.token_strs is None else _json(tokens.token_strs),
        "info": "" if tokens.info is None else _json(tokens.info),
    }
    outputs = [pb_utils.Tensor(name, np.array([text.encode()], np.object_)) for name, text in texts.items()]
    outputs.append(pb_utils.Tensor("max_model_len", np.array([tokens.max_model_len], np.int32)))
    return pb_utils.InferenceResponse(outputs)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
