//! Pure decisions: when to checkpoint, which recovery step comes next, who takes over.
