"""What other programs have of a running query service; only HTTP is spoken, no torch is loaded.

``client`` (from Python, with and without an event loop), ``hits`` (what it returns, and how a
notebook shows that), ``assistant`` (for assistants, by MCP).
"""
