"""The wire becomes a `ChatRequest`: parsing, checks, prompts."""
