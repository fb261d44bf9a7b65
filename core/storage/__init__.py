"""The bucket, S3 or a folder.

``store`` reads its objects as they are now, ``files`` writes small files on conditions.
"""
