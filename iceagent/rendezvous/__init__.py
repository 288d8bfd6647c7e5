"""How do two peers exchange descriptions, and what do they say to each other once they are connected?

- ``files.py``: descriptions in two files that both ends can read, and that are watched for restarts and late candidates
- ``paste.py``: descriptions by copy and paste
- ``mailbox_client.py``: descriptions through a room of a rendezvous server; its HTTP: ``http_client.py``
- ``mailbox.py``: the rooms of such a server (pure); ``mailbox_http.py``: its connections (pure); ``mailbox_server.py``:
  its shell; ``waits.py``: what is due when (pure)
- ``payload.py``: numbered, timed datagrams, their answers, and what was lost (pure)
- ``peer_session.py``: joins an agent, an exchange and a payload: what ``iceagent connect`` runs

An exchange (``exchange.py``) is an :class:`~iceagent.rendezvous.exchange.Outbox` and an
:class:`~iceagent.rendezvous.exchange.Inbox`: files, paste and mailbox are its three kinds, and another way to signal is
another pair of them.
"""
