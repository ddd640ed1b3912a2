"""The engine of this project: continuous batching over a paged KV cache."""
