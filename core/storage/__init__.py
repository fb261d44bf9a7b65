"""The bucket, S3 or a folder.

``store`` reads its objects as they are now, ``files`` writes small files on conditions; both ask
S3 through ``s3``: without boto3 by ``lean``, which needs ``addresses``, ``signing`` and
``connections``, or by ``boto``. ``objects`` is what both say of one, ``refusals`` tells whose fault
it is that S3 refuses. ``mounts`` makes several buckets one. ``temporary`` says which names no sound
has, and lends files that a killed process does not leave behind.
"""
