"""How do two peers exchange descriptions, and what do they say to each other once they are connected?

- ``files.py``: descriptions in two files that both ends can read, and that are watched for restarts and late candidates
- ``paste.py``: descriptions by copy and paste
- ``payload.py``: numbered, timed datagrams, their answers, and what was lost (pure)
- ``peer_session.py``: joins an agent, an exchange and a payload: what ``iceagent connect`` runs

An exchange is an :class:`~iceagent.rendezvous.peer_session.Outbox` and an
:class:`~iceagent.rendezvous.peer_session.Inbox`; another way to signal is another pair of them.
"""
