"""A worker's host: the processes that one ``audiofuse worker`` consists of.

In reading order: ``supervisor`` starts them, keeps them running and stops them in order, ``kept``
is one of them, ``taker`` is what those run that take messages, ``sockets`` the folder by which they
meet.
"""
