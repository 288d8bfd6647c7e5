"""The ground floor: what is a host, and how is a core pumped?

Pure: ``address`` (transport addresses), ``core`` (the contract of every sans-IO core), ``host`` (what a program may ask
of the machine it runs on: sockets, streams, interfaces, names, time).

Shells: ``sockets`` (UDP), ``streams`` (TCP, TLS), ``interfaces`` (what addresses there are), ``resolve`` (names),
``driver`` (the one pump of a core in production), and ``local``, which joins them to this machine.

Importing this package imports none of them. It depends on nothing else of this project.
"""
