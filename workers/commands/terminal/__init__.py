"""What people see and type in a terminal.

``options`` (that several commands have), ``display`` (tables and bars).
"""
