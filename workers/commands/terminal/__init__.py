"""What people see and type in a terminal.

``options`` (that several commands have), ``screen`` (how wide it is, and what does not fit),
``display`` (tables and bars), ``following`` (what ``up`` tells while it runs).
"""
