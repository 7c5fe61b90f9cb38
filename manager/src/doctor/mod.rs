//! What this node can and cannot do, each with the remedy.
