"""The second engine: vLLM, which computes what the native engine does not, behind the same door."""
