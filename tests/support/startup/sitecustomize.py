"""Start of each Python process of a test that changes constants."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
import changed_constants

changed_constants.install()
sys.path.pop()
