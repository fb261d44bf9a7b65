"""Write rules.yaml: the rules of deploy/prometheus as an object of Prometheus's operator.

python deploy/kubernetes/monitoring/rules.py
"""

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "prometheus" / "rules"
MADE = "# Made by rules.py from deploy/prometheus/rules: `make dashboards`.\n"


def groups() -> list[Any]:
    """Return the groups of all files of rules."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    return [group for file in files for group in file["groups"]]


def main() -> None:
    """Write it."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "audiofuse"},
        "spec": {"groups": groups()},
    }
    (HERE / "rules.yaml").write_text(MADE + yaml.safe_dump(rule, sort_keys=False, width=100))


if __name__ == "__main__":
    main()
