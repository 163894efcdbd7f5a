"""Processes that no MPI started: how they find each other, and messages between them over sockets.

```
rendezvous.py   meeting in a store: env://, tcp://, file://
mesh.py         connecting every two ranks
transport.py    TCPTransport: sends and receives
operations.py   messages under way;  progress.py: who moves them on;  connection.py: one socket
world.py        the group of all ranks, its watch and its end
```
"""
