"""Checks that the models named in the values are served."""

import os

from openai import OpenAI

from triton_chat import ChatClient

expected = set(os.environ["MODELS"].split(","))
if gateway := os.environ.get("GATEWAY_URL"):
    with OpenAI(base_url=f"{gateway}/v1", api_key=os.environ.get("API_KEY", "none"), timeout=30) as client:
        served = {model.id for model in client.models.list()}
else:
    with ChatClient(os.environ["TRITON_URL"]) as triton:
        served = {model.name for model in triton.models()}
assert expected <= served, f"missing: {sorted(expected - served)}; served: {sorted(served)}"
print("served:", *sorted(served))
