"""Triton as the gateway sees it."""
