r"""The texts of `--help`. `\\b` keeps the line breaks of the paragraph that follows."""

MAIN = """Talk to a chat model on a tritonserver, over gRPC.

\b
Start a server with `make serve`, then:
  triton-chat ask "Why is the sky blue?"
  git diff | triton-chat ask "Review this change" --max-tokens 300
  triton-chat chat --system "Answer in one sentence."
  triton-chat complete "Once upon a time" --temperature 0
  triton-chat embed "a cat" "a kitten" "a tax return"
  triton-chat status --watch

The server's address comes from --url or TRITON_CHAT_URL; the default is localhost:8001.
"""

ASK = """Ask one question; the answer streams to standard output.

\b
  triton-chat ask "Why is the sky blue?"
  cat report.txt | triton-chat ask "Summarise this"
  triton-chat ask "A haiku about rain" --temperature 0.8 --seed 7 --stats
  triton-chat ask "Yes or no?" --max-tokens 1 --logprobs 5 --json
"""

CHAT = """Start an interactive conversation; /help lists its commands.

\b
  triton-chat chat
  triton-chat chat --system "You are a patient teacher." --stats
"""

COMPLETE = """Continue a raw prompt; no chat template is applied.

\b
  triton-chat complete "Once upon a time" --max-tokens 40
  triton-chat complete --stop "###" < prompt.txt
"""

EMBED = """Turn texts into vectors, and show how similar they are.

\b
Several texts are compared by cosine similarity; for a single text its vector is printed.
\b
  triton-chat embed "a cat" "a kitten" "a tax return"
  triton-chat embed "which animal?" < animals.txt
  triton-chat embed --json --dimensions 64 < lines.txt | jq '.data[].embedding'
"""

MODELS = """List the models on the server.

\b
  triton-chat models
  triton-chat models --json | jq -r '.[] | select(.ready) | .name'
"""

STATUS = """Show health, queue, running requests, KV cache usage and speed.

\b
  triton-chat status
  triton-chat status --watch --interval 2
  triton-chat status --json
"""

EPILOG = """\b
Exit codes:
  0    success (also if the reader of the output closed the pipe)
  1    the server failed, or `status` found it not ready
  2    wrong usage, or the server rejected the request
  3    the server cannot be reached
  4    the server is overloaded
  124  a time limit was exceeded
  130  interrupted by Ctrl-C"""
