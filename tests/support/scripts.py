"""Scripts that belong to no package, as modules."""

import importlib.util
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy"


def load_script(name: str, folder: Path = DEPLOY) -> Any:
    """Return the script of this name as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
