"""Between Triton and the code of any of these models: the process, errors, callers, and requests from model to model.

The other models have links to this folder and to `chat_engine` beside their `model.py`, where Python looks first.
"""

import locale
import os

# The stub starts Python under the C locale, in which torch and tokenizers cannot read UTF-8 files.
locale.setlocale(locale.LC_CTYPE, "C.UTF-8")

# Threads of libgomp, which torch computes with, spin while they wait for each other. Beside other busy processes that
# takes most of their time, and decoding becomes several times slower. After so many rounds they sleep instead, which
# costs nothing measurable where the machine is theirs. libgomp reads it when torch is imported: here is early enough.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
