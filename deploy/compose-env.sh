#!/bin/sh
# Write .env for docker-compose.yml, with CPU limits that this machine has, and beside it the folder
# .secrets with a password of your own in each file. What is there stays as it is: run again it adds
# what a newer version wants.
#
#   sh deploy/compose-env.sh [FILE]
set -eu
file=${1:-.env}
elsewhere=$(sed -n 's|^SECRETS=/|/|p' "$file" 2>/dev/null) || true
secrets=${elsewhere:-$(dirname "$file")/.secrets}
written=
umask 077

secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# Users of containers read these files, who are nobody here: what keeps others out is the folder.
put() {
    [ ! -e "$secrets/$1" ] || return 0
    printf %s "$2" > "$secrets/$1"
    chmod 444 "$secrets/$1"
    written="$written $1"
}

at_most() { if [ "$1" -lt "$2" ]; then echo "$1"; else echo "$2"; fi; }

# Docker's own count: its machine may be another, or a virtual one with fewer CPUs.
cpus=$(docker info --format '{{.NCPU}}' 2>/dev/null | tail -n 1) || true
case $cpus in '' | 0 | *[!0-9]*) cpus=$(getconf _NPROCESSORS_ONLN) ;; esac

[ -e "$file" ] || cat > "$file" <<END
# cpu or gpu; with gpu also: TORCH= and IMAGE_TAG=cuda. And cpu,alerts: somebody is told of alerts;
# cpu,learn: the archive teaches its encoder, every IMPROVE_EVERY (7d).
COMPOSE_PROFILES=cpu
# Where packages come from an index of your own: INDEX=URL, and for PyTorch without CUDA, with TORCH=
# left empty, TORCH_INDEX=URL.
TORCH=cpu
IMAGE_TAG=cpu
# Whole CPUs that a worker may use, and each of storage, index and search; never more than there are.
WORKER_CPUS=$(at_most "$cpus" 8)
SERVICE_CPUS=$(at_most "$cpus" 2)
# How many processes of a worker take messages; empty: one for each four CPUs, with a GPU for each two.
WORKER_PROCESSES=
# true: search puts sounds into the bucket, for keys in .secrets/search_api_keys with the scope upload.
UPLOADS=
# true: search keeps what listeners say of hits, for keys with the scope feedback, and improve learns from it.
FEEDBACK=
# The folder with one password a file: each service is shown those that it needs.
SECRETS=$secrets
END
mkdir -p "$secrets"
put s3_owner "$(secret)"  # storage's owner (access key: owner), who makes buckets and publishes encoders
put s3_uploader "$(secret)"  # who uploads (access key: uploader)
put s3_reader "$(secret)"  # audiofuse itself (access key: audiofuse), which only reads
put s3_search "$(secret)"  # search (access key: search), which reads, and writes sounds with UPLOADS=true, verdicts with FEEDBACK=true
put webhook_token "$(secret)"
put qdrant_api_key "$(secret)"
put qdrant_read_key "$(secret)"  # who searches, and Prometheus
put grafana_password "$(secret)"
put search_key "$(secret)"
put search_api_keys "me:$(cat "$secrets/search_key")"  # who may ask: NAME:KEY,NAME:KEY
put valkey_password "$(secret)"
put broker_url "redis://:$(cat "$secrets/valkey_password")@valkey:6379/0"
put alert_url http://127.0.0.1:9/  # whom Alertmanager tells, with the profile `alerts`: write yours
# Prometheus, Grafana and Alertmanager read these as users of their own, whatever umask there was here.
here=$(dirname "$0")
chmod -R go+rX "$here/prometheus" "$here/grafana" "$here/alertmanager"
[ -z "$written" ] || echo "wrote into $secrets:$written"
