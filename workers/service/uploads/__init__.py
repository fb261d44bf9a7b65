"""Sounds and sidecars that are put into the bucket over HTTP, where its owner allows it.

``routes`` (who may, how much, what is answered), ``keys`` (under which names), ``places`` (into a
folder or an S3 bucket, whole or not at all).
"""
