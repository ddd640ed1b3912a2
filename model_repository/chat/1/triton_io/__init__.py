"""Between Triton and the code of any of these models: the process, errors, callers, and requests from model to model.

The other models have links to this folder and to `chat_engine` beside their `model.py`, where Python looks first.
"""

import locale

# The stub starts Python under the C locale, in which torch and tokenizers cannot read UTF-8 files.
locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
