#!/bin/sh
# Write the demo's secrets, one file of variables for each, with passwords of your own.
# Never overwrites one.
#
#   sh deploy/kubernetes/demo/secrets.sh
set -eu
folder=$(dirname "$0")/secrets
umask 077
mkdir "$folder"

secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

write() { cat > "$folder/$1.env"; }

broker=$(secret) index=$(secret) index_reader=$(secret) webhook=$(secret) search=$(secret)
owner=$(secret) reader=$(secret)
# What audiofuse gets, as deploy/operations.md has you make it elsewhere.
write broker <<END
AUDIOFUSE_BROKER_URL=redis://:$broker@valkey:6379/0
END
write index <<END
AUDIOFUSE_QDRANT_API_KEY=$index
END
write index-reader <<END
AUDIOFUSE_QDRANT_API_KEY=$index_reader
END
write storage <<END
AUDIOFUSE_S3_ACCESS_KEY_ID=audiofuse
AUDIOFUSE_S3_SECRET_ACCESS_KEY=$reader
END
write owner <<END
AUDIOFUSE_S3_ACCESS_KEY_ID=owner
AUDIOFUSE_S3_SECRET_ACCESS_KEY=$owner
AUDIOFUSE_SEARCH_KEY=$search
END
write search <<END
AUDIOFUSE_API_KEYS=me:$search
END
write webhook <<END
AUDIOFUSE_WEBHOOK_TOKEN=$webhook
END
# What the demo's own servers get.
write valkey <<END
VALKEY_PASSWORD=$broker
REDISCLI_AUTH=$broker
END
write qdrant <<END
QDRANT__SERVICE__API_KEY=$index
QDRANT__SERVICE__READ_ONLY_API_KEY=$index_reader
END
write s3 <<END
S3_OWNER_SECRET_KEY=$owner
S3_SECRET_KEY=$reader
WEBHOOK_TOKEN=$webhook
END
echo "wrote $folder"
