"""What a host's message processes and its device process exchange: windows one way, vectors back.

In reading order: ``protocol`` what they say to each other, ``slab`` the memory in which windows
cross without being copied, ``ask`` what one thread asks, ``client`` the message process's side,
which outlives the device's process, ``suspects`` which sounds a device died of.
"""
