"""A relay with NAT latching: what its ports hear goes to the peers that have authenticated themselves at them.

- :class:`relay.latch.relay.LatchRelay`: the relay, on a host.
- :mod:`relay.latch.channel`: options, statistics and events.
"""
