"""Watches tritonserver and the processes of its models: what is dead or stuck is ended, for a restart from outside.

Triton restarts no process of a model, before 25.12 calls a model ready whose process is dead, and leaves its callers
waiting for ever.
"""
