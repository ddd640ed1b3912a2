"""The triton-chat engine: continuous batching over a paged KV cache. It never imports Triton."""
