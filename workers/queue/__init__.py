"""Celery over Redis or Valkey.

``broker`` (the application and its lanes), ``transport`` (how messages are popped and held),
``followers`` (which process follows which rollout document), ``dead_letters`` (objects that are
not in the index, and why).
"""
