#!/bin/sh
# Write .env for docker-compose.yml: passwords of your own, and CPU limits that this machine has.
# Never overwrites one.
#
#   sh deploy/compose-env.sh [FILE]
set -eu
file=${1:-.env}
umask 077
set -C  # fail if the file is there

secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

at_most() { if [ "$1" -lt "$2" ]; then echo "$1"; else echo "$2"; fi; }

# Docker's own count: its machine may be another, or a virtual one with fewer CPUs.
cpus=$(docker info --format '{{.NCPU}}' 2>/dev/null | tail -n 1) || true
case $cpus in '' | 0 | *[!0-9]*) cpus=$(getconf _NPROCESSORS_ONLN) ;; esac

search=$(secret)
cat > "$file" <<END
# cpu or gpu; with gpu also: TORCH= and IMAGE_TAG=cuda
COMPOSE_PROFILES=cpu
TORCH=cpu
IMAGE_TAG=cpu
# Whole CPUs that a worker may use, and each of storage, index and search; never more than there are.
WORKER_CPUS=$(at_most "$cpus" 8)
SERVICE_CPUS=$(at_most "$cpus" 2)
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
