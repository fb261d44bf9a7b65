"""Python imports this as it starts: where FAULT is set, that fault is brought in."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from faults import bring_in

bring_in()
