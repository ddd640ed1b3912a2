"""Runs in the gateway's image: one answer of Triton itself through the SDK, a line of JSON for each event."""

import json
import sys

from triton_chat import ChatClient

model, question, options = sys.argv[1:]
with ChatClient("127.0.0.1:8001") as client:
    for event in client.stream([{"role": "user", "content": question}], model=model, **json.loads(options)):
        sys.stdout.write(json.dumps({"text": event.text, "finish_reason": event.finish_reason}) + "\n")
        sys.stdout.flush()
