"""What people see and type in a terminal.

``options`` (that several commands have), ``display`` (tables and bars), ``following`` (what ``up``
tells while it runs).
"""
