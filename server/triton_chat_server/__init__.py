"""The command `triton-chat-server`: serves the model repository, fetches checkpoints, answers probes.

A probe runs every few seconds beside the server, so this package imports what a subcommand needs only when it runs.
"""
