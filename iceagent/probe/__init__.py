"""What can reach this host, and what can it reach? The measurements behind ``iceagent probe``.

``measure.py`` asks the network, ``verdict.py`` draws the conclusions, ``report.py`` is what comes out, ``advice.py``
says what to do about it, ``render.py`` shows it to a person.
"""
