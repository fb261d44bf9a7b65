#!/bin/sh
# Compare the pinned versions with known vulnerabilities, as osv.dev knows them. Exit code 1: there
# are some; 2: nothing was audited, because nobody could be asked.
set -eu
python=$1
if ! "$python" -c 'import socket; socket.create_connection(("api.osv.dev", 443), 10)' 2>/dev/null; then
    echo "offline: osv.dev cannot be asked, so NOTHING WAS AUDITED" >&2
    exit 2
fi
exec uv tool run --quiet pip-audit@2.10.1 --vulnerability-service osv --progress-spinner off \
    --no-deps --disable-pip --requirement constraints.txt
