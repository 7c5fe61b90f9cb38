//! Who may run a container: create-only epochs in the store.
