"""Private namespaces in which clusters can be made, also without root, and vanish with the last process inside.

The process moves to a mount namespace of its own, so that named network namespaces are visible only inside and need
no clean-up; and, if it is not root, to a user namespace in which it is root (user_namespaces(7)).
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.config import BadInput
from bench.nodes import cluster, node

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000


def enter() -> None:
    """Move this process, which must have one thread only, into the private namespaces; BadInput if it may not."""
    user, group = os.geteuid(), os.getegid()
    try:
        if cluster.has_privileges():
            node.unshare(_CLONE_NEWNS)
        else:
            # setns() back from a node is allowed only to a network namespace that this user namespace owns.
            node.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
            cluster.set_loopback_up()
        node.make_mounts_private()
        node.mount("tmpfs", "/run", "tmpfs")
    except OSError as error:
        raise BadInput(
            f"cluster: this user may not make namespaces ({error.strerror}); use sudo, or have user namespaces "
            "allowed: sysctl user.max_user_namespaces=10000 (and kernel.unprivileged_userns_clone=1 where it exists)"
        ) from None
