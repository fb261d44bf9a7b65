"""The bucket, S3 or a folder.

``store`` reads its objects as they are now, ``files`` writes small files on conditions,
``refusals`` tells whose fault it is that S3 refuses, ``temporary`` which names no sound has,
``scratch`` has files that a killed process does not leave behind.
"""
