"""Runs in a container: who its processes are, and what they may do."""

import json
import sys
from pathlib import Path

FIELDS = ("Name", "Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs")

found = []
for status in Path("/proc").glob("[0-9]*/status"):
    rows = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    found.append({field: rows[field].strip() for field in FIELDS})
sys.stdout.write(json.dumps(found))
