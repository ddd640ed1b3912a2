r"""The texts of `--help`. `\\b` keeps the line breaks of the paragraph that follows."""

_REQUEST = """
An answer can follow one rule: give one of --json-schema, --regex, --choice, --grammar and --structured-outputs. A
sampling parameter that is not given has the server's default.
"""

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

ASK = (
    """Ask one question; the answer streams to standard output.

\b
  triton-chat ask "Why is the sky blue?"
  cat report.txt | triton-chat ask "Summarise this"
  triton-chat ask "A haiku about rain" --temperature 0.8 --seed 7 --stats
  triton-chat ask "Yes or no?" --max-tokens 1 --logprobs 5 --json

\b
What the answer must be:
  triton-chat ask "Is the sky blue?" --choice yes --choice no
  triton-chat ask "A date in May 2025" --regex "2025-05-[0-3][0-9]"
  triton-chat ask "Describe Paris" --json-schema city.json | jq .country

\b
Tools that the model may call; a call is printed, such as get_weather(city="Paris"):
  triton-chat ask "What is the weather in Paris?" --tools tools.json
  triton-chat ask "What is the weather in Paris?" --tools tools.json --tool-choice required --json
  triton-chat ask "17 * 23?" --template-kwarg enable_thinking=true

tools.json is OpenAI's list: [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
"properties": {"city": {"type": "string"}}}}}]. What the model thinks goes to stderr; --no-reasoning hides it.
The value of --template-kwarg is JSON, such as true, 3 or "3"; what is no JSON is a text.
"""
    + _REQUEST
)

CHAT = (
    """Start an interactive conversation; /help lists its commands.

\b
  triton-chat chat
  triton-chat chat --system "You are a patient teacher." --stats
  triton-chat chat --tool-module weather.py
  triton-chat chat --tools tools.json

With --tool-module the model may call the public functions of a Python file of yours. Each call is shown, and runs once
you type y; --yes runs all of them unasked. A function has a type for each parameter; its docstring tells the model what
it does. You type the result of a tool that --tools alone describes, so --tools needs a terminal.
"""
    + _REQUEST
)

COMPLETE = (
    """Continue a raw prompt; no chat template is applied.

\b
  triton-chat complete "Once upon a time" --max-tokens 40
  triton-chat complete --stop "###" < prompt.txt
"""
    + _REQUEST
)

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
