"""Memory that several processes of the daemon share: files in the run directory (tmpfs), mapped by name.

It outlives any process but the box: who is restarted finds what was there.
"""
