"""Sound files.

``windows`` what one is handed on in, ``recording`` decodes one window by window, ``containers``
tells how long one says it is, ``excerpt`` cuts a part out of one, ``confinement`` takes all
rights from processes that read them.
"""
