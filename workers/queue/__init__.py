"""Celery over Redis or Valkey.

``broker`` (the application, and how a key is handed over), ``lanes`` (the two queues: names, order,
how much is in them), ``transport`` and its script ``pop.lua`` (how messages are popped and held),
``consumer`` (how a worker takes and acknowledges them), ``pool`` (to whom Celery gives them to be
worked on), ``earlier`` (messages that an earlier release left), ``followers`` (which process
follows which state of the rollout), ``outages`` (what workers wait for), ``waiting`` (keys that
wait for an encoder version), ``pipelined`` (what many threads ask of Redis at the same time),
``dead_letters`` (objects that are not in the index, and why), ``deliveries`` (which workers died
while they decoded an object).
"""
