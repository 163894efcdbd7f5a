"""Algorithms over process groups: uneven inputs (`join`), hooks of DistributedDataParallel, and
model averaging."""
