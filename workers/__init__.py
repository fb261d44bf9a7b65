"""What runs as a process: intake, worker, service, repair, rollout, and the commands.

Rooms in the order of a message's way: ``intake``, ``queue``, ``indexing``, ``repair``, ``rollout``,
``service``, ``programs``, ``deployment``, ``telemetry``, ``commands``.
"""
