"""`python -m triton_chat`."""

from triton_chat.cli import main

main()
