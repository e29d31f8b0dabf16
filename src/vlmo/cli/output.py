"""Output of the commands: names and texts of others cannot control the terminal."""

import json
import re
import sys
from typing import Any

from vlmo.terminal import HIDDEN, without_controls


def say(*lines: str) -> None:
    """Print lines whole, as they are but for control characters, of which an end of line is one."""
    sys.stdout.write("".join(f"{without_controls(line)}\n" for line in lines))
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """Print a value as JSON, in which every control character is escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    sys.stdout.write(re.sub(rf"[{HIDDEN}]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
