"""Token ids become text."""
