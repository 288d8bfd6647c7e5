"""What happens to two agents that talk all the time when the network between them breaks?

One table, :data:`bench.survival.rows.ROWS`: every row is two homes, an event, and how soon the talk has to go on. The
tests of the laboratory run each row once, with ours; ``python -m bench --only survival`` runs the table several times
and puts aioice beside it.

- ``homes.py``: two machines behind routers, and servers.
- ``record.py``: what one end has heard and was told, whoever it is.
- ``talk.py``, ``programs.py``, ``theirs.py``: who talks: agents of ours in this process, ``iceagent connect``, aioice.
- ``row.py``: what a row is; ``rows.py``: the table; ``play.py``: plays a row, and judges it.
"""
