"""Checks that a question gets a streamed answer."""

import os

from openai import OpenAI

from triton_chat import ChatClient

question = [{"role": "user", "content": "Who are you?"}]
if gateway := os.environ.get("GATEWAY_URL"):
    with OpenAI(base_url=f"{gateway}/v1", api_key=os.environ.get("API_KEY", "none"), timeout=120) as client:
        stream = client.chat.completions.create(model="chat", messages=question, max_tokens=32, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
else:
    with ChatClient(os.environ["TRITON_URL"]) as triton:
        parts = [event.text for event in triton.stream(question, max_tokens=32)]
answer = "".join(parts)
assert answer.strip(), "the answer is empty"
print(f"{len(parts)} chunks: {answer}")
