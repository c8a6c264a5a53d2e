"""The benchmarks' texts: read from beside the checkout, or downloaded once."""

import hashlib
from pathlib import Path

from vitrine.text.builtin import SHAKESPEARE_SHA256, shakespeare

BESIDE = Path(__file__).parent.parent.parent / "shared" / "data" / "tinyshakespeare.txt"


def tinyshakespeare() -> Path:
    """1.1 MB of Shakespeare; its digest is checked."""
    if BESIDE.is_file() and hashlib.sha256(BESIDE.read_bytes()).hexdigest() == SHAKESPEARE_SHA256:
        return BESIDE
    return shakespeare()
