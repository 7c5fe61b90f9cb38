//! The container's network on this node: bridge, veth, addresses, neighbours, conflicts.
