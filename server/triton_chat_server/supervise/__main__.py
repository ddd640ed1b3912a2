"""`python -m triton_chat_server.supervise TRITONSERVER FLAGS...`: for a launcher that has made the command itself."""

from __future__ import annotations

import logging
import os
import sys

from triton_chat_server.supervise.supervisor import supervise

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    sys.exit(supervise(sys.argv[1:], os.environ))
