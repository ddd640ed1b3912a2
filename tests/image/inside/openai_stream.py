"""Runs in the gateway's image: one chat completion through the openai package, a line of JSON for each chunk."""

import json
import sys

from openai import OpenAI

port, question, *options = sys.argv[1:]
extra = json.loads(options[0]) if options else {}
client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
stream = client.chat.completions.create(
    model=extra.pop("model", "chat"), messages=[{"role": "user", "content": question}], stream=True, extra_body=extra
)
for chunk in stream:
    (choice,) = chunk.choices
    line = {"text": choice.delta.content or "", "finish_reason": choice.finish_reason}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
