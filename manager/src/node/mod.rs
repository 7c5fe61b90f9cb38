//! One running manager: the rooms wired together.
