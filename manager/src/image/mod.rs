//! Images: from a directory, an OCI layout or archive, or a registry to layers in the store, and from there to a node.
