"""Events from the bucket to the queue.

``events`` (what a notification says, in every dialect), ``handover`` (to the queue), the sources
``folder``, ``sqs``, ``redis_list`` and ``webhook``, and ``build``, which makes one from settings.
"""
