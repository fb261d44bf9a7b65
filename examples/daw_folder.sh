#!/bin/sh
# Keeps a bucket in step with the folder where a DAW (Reaper, Live, Logic) keeps its sounds, by rclone:
#
#     rclone config                                       # once: names a remote, here "studio"
#     ./daw_folder.sh ~/Music/Samples studio:sounds/samples
#
# then find them by `audiofuse search "a dry snare"`. From cron it runs as often as you like: what did
# not change is not sent. A folder on the machine that searches needs none of this: `audiofuse up`
# watches it.
set -eu

folder=${1:?the folder to keep, then the remote and its bucket, as in studio:sounds}
remote=${2:?where to keep it: a remote of rclone and a bucket, as in studio:sounds}

# Sidecars first, so that a sound's words are there when it arrives. Then sounds, but none that a
# recording is still being written into. What was deleted or renamed here is so there, too.
rclone copy "$folder" "$remote" --filter "+ *.json" --filter "- *"
exec rclone sync "$folder" "$remote" --min-age 10s --track-renames --transfers 8 \
  --filter "+ *.json" --filter "+ *.{wav,aif,aiff,flac,mp3,ogg,opus,m4a}" --filter "- *"
