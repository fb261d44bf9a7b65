"""Exit with 0 if a URL answers with success: the health check of a container without curl.

python deploy/healthy.py http://127.0.0.1:7700/readyz
"""

import sys
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

TIMEOUT_S = 4

try:
    urlopen(sys.argv[1], timeout=TIMEOUT_S).close()  # noqa: S310 - whoever calls names it
except (HTTPError, URLError, OSError) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
