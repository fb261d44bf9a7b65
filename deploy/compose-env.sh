#!/bin/sh
# Write .env for docker-compose.yml, with passwords of your own. Never overwrites one.
#
#   sh deploy/compose-env.sh [FILE]
set -eu
file=${1:-.env}
umask 077
set -C  # fail if the file is there

secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

search=$(secret)
cat > "$file" <<END
# cpu or gpu; with gpu also: TORCH= and AUDIOFUSE_IMAGE_TAG=cuda
COMPOSE_PROFILES=cpu
TORCH=cpu
AUDIOFUSE_IMAGE_TAG=cpu
# The bucket's owner (access key: owner), who uploads; and audiofuse itself, which only reads.
S3_OWNER_SECRET_KEY=$(secret)
S3_SECRET_KEY=$(secret)
WEBHOOK_TOKEN=$(secret)
VALKEY_PASSWORD=$(secret)
QDRANT_API_KEY=$(secret)
SEARCH_API_KEYS=me:$search
AUDIOFUSE_SEARCH_KEY=$search
GRAFANA_PASSWORD=$(secret)
END
echo "wrote $file"
