"""A private place for clusters: they vanish with the last process in it, however that ends.

The process leaves for namespaces of its own: mounts, so that the names of network namespaces are known in
here only and need no clean-up; and users, if it is not root, so that it is root in here (user_namespaces(7)).
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.config import BadInput
from bench.nodes import cluster, node

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000


def enter() -> None:
    """Move this process, while it has but one thread, to where it may make clusters; BadInput if it may not."""
    user, group = os.geteuid(), os.getegid()
    try:
        if cluster.may():
            node.unshare(_CLONE_NEWNS)
        else:
            # A network of its own too: one may come back from a node only to a network that one owns.
            node.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
            cluster.raise_loopback()
        node.keep_mounts_private()
        node.mount("tmpfs", "/run", "tmpfs")
    except OSError as error:
        raise BadInput(
            f"cluster: this user may not make namespaces ({error.strerror}); use sudo, or have user namespaces "
            "allowed: sysctl user.max_user_namespaces=10000 (and kernel.unprivileged_userns_clone=1 where it exists)"
        ) from None
