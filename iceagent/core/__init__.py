"""ICE itself (RFC 8445), sans-IO: no socket, no clock, no task. ``session.py`` joins the parts behind one contract."""
