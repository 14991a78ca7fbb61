"""The office: what happens to a verdict after the line is done with it.

It tails the journals into the archive (rows, images) and the outbox (messages for the plant's broker). It may wait for
a disk, a broker or a person; nothing in the decision path ever waits for it.
"""
