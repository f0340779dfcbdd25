"""Emulated nodes: a cluster of network namespaces with shaped links inside one machine."""
