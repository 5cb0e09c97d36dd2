"""Prints the code blocks of README.md in one language, so that CI runs what the README says and nothing else.

Usage: readme.py LANGUAGE
"""

import re
import sys
from pathlib import Path

readme = (Path(__file__).parent.parent / "README.md").read_text()
blocks = re.findall(rf"^```{re.escape(sys.argv[1])}\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
if not blocks:
    sys.exit(f"README.md has no {sys.argv[1]} block")
print("\n".join(blocks))
